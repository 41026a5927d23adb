/* Which level runs: set by hand, for a frequency, or followed by `auto`. */
#include <math.h>
#include <string.h>

#include "rt3_internal.h"

int32_t rt3_level_count(const rt3_model *model) { return rt3_bundle_of(model)->level_count; }

static rt3_status check_level(const rt3_bundle *bundle, int32_t level) {
  if (level >= 0 && level < bundle->level_count) return RT3_OK;
  return rt3_fail(RT3_ERROR_ARGUMENT, "level %d: choose 0 to %d", (int)level, (int)bundle->level_count - 1);
}

rt3_status rt3_level(const rt3_model *model, int32_t level, rt3_level_info *info) {
  if (model == NULL || info == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_level: model or info is NULL");
  rt3_status status = check_level(model->bundle, level);
  if (status == RT3_OK) *info = model->bundle->levels[level];
  return status;
}

int32_t rt3_current_level(const rt3_model *model) {
  if (model == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_current_level: model is NULL");
  return atomic_load_explicit(&((rt3_model *)model)->choice, memory_order_acquire) & ~RT3_FOLLOW;
}

rt3_status rt3_set_level(rt3_model *model, int32_t level) {
  if (model == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_set_level: model is NULL");
  rt3_status status = check_level(model->bundle, level);
  if (status != RT3_OK) return status;
  atomic_store_explicit(&model->choice, level, memory_order_release);
  return RT3_OK;
}

static rt3_level_table level_table(const rt3_bundle *bundle) {
  return (rt3_level_table){bundle->levels, bundle->level_count};
}

rt3_status rt3_set_frequency(rt3_model *model, double hz) {
  if (model == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_set_frequency: model is NULL");
  if (!(hz > 0 && hz < INFINITY))
    return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_set_frequency: %g Hz is not a frequency", hz);
  bool below = false;
  int32_t level = rt3_level_for(level_table(model->bundle), hz, &below);
  atomic_store_explicit(&model->choice, level, memory_order_release);
  return below ? RT3_BELOW_RANGE : RT3_OK;
}

/* Written so that NaN fails. */
static bool is_duration(double seconds) { return seconds >= 0 && seconds < INFINITY; }

rt3_status rt3_set_auto(rt3_model *model, const rt3_auto_options *options) {
  const rt3_auto_options defaults = {0};
  const rt3_auto_options *o = options != NULL ? options : &defaults;
  if (model == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_set_auto: model is NULL");
  if (!is_duration(o->dwell_s) || !is_duration(o->poll_s) || !is_duration(o->hysteresis) || o->policy < 0)
    return rt3_fail(RT3_ERROR_ARGUMENT,
                    "rt3_set_auto: dwell, poll, hysteresis and policy must be finite and at least 0");
  char path[sizeof model->clock_path];
  double hz = 0;
  const rt3_status status = rt3_cpufreq_start(o, path, sizeof path, &hz);
  if (status != RT3_OK) return status;
  if (!rt3_take_handle(model)) return rt3_fail(RT3_ERROR_BUSY, "rt3_set_auto: the handle is running");
  memcpy(model->clock_path, path, sizeof path);
  rt3_governor_start(&model->governor, o, level_table(model->bundle), rt3_now());
  bool below = false;
  const int32_t level = rt3_level_for(level_table(model->bundle), hz, &below);
  atomic_store_explicit(&model->choice, level | RT3_FOLLOW, memory_order_release);
  rt3_release_handle(model);
  return RT3_OK;
}

int32_t rt3_take_level(rt3_model *model, double now, bool *follow) {
  int32_t choice = atomic_load_explicit(&model->choice, memory_order_acquire);
  *follow = (choice & RT3_FOLLOW) != 0;
  if (!*follow) return choice;
  double hz = 0;
  if (rt3_governor_polls(&model->governor, now) && !rt3_cpufreq_read(model->clock_path, &hz)) hz = 0;
  const int32_t chosen = rt3_governor_choose(&model->governor, choice & ~RT3_FOLLOW, hz, now);
  if (atomic_compare_exchange_strong(&model->choice, &choice, chosen | RT3_FOLLOW)) return chosen;
  *follow = false;
  return choice;
}
