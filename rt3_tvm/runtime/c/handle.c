/* Handles: opening and closing them, whose turn it is, and their threads. */
#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rt3_internal.h"

#define RT3_ALIGNMENT 64

const char *rt3_metadata(void) { return rt3_metadata_json; }

const rt3_bundle *rt3_bundle_of(const rt3_model *model) { return model != NULL ? model->bundle : &rt3_bundle_tables; }

/* What kernels and the choice of a level rely on: a damaged table must not send them out of bounds. */
static rt3_status check_tables(const rt3_bundle *bundle) {
  for (int32_t i = 0; i < bundle->input_count + bundle->internal_count; ++i) {
    const rt3_input_spec *spec = &bundle->inputs[i];
    if (spec->info.dtype != RT3_FLOAT32 && (spec->fill < 0 || spec->fill >= spec->info.limit))
      return rt3_fail(RT3_ERROR_BUNDLE, "input '%s' is padded with %lld, outside [0, %lld)", spec->info.name,
                      (long long)spec->fill, (long long)spec->info.limit);
  }
  for (int32_t i = 0; i < bundle->level_count; ++i) {
    const rt3_level_info *level = &bundle->levels[i];
    const double above = i > 0 ? level[-1].frequency_hz : INFINITY;
    /* Written so that NaN fails. */
    if (!(level->frequency_hz > 0 && level->frequency_hz < above) ||
        !(level->deadline_s >= 0 && level->deadline_s < INFINITY) || !(level->density >= 0 && level->density <= 1))
      return rt3_fail(RT3_ERROR_BUNDLE, "level %d: %g Hz below %g Hz, deadline %g s, density %g are no level", (int)i,
                      level->frequency_hz, above, level->deadline_s, level->density);
  }
  uint64_t end = 0;
  for (int32_t i = 0; i < bundle->section_count; ++i) {
    const rt3_weight_section *section = &bundle->sections[i];
    if (section->level != RT3_SHARED + i || section->level >= bundle->level_count || section->offset < end)
      return rt3_fail(RT3_ERROR_BUNDLE, "section %d of the weights: level %d at %llu, behind %llu, is no section",
                      (int)i, (int)section->level, (unsigned long long)section->offset, (unsigned long long)end);
    end = section->offset + section->bytes;
  }
  return RT3_OK;
}

rt3_status rt3_open(rt3_model **model) {
  if (model == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_open: model is NULL");
  *model = NULL;
  const rt3_bundle *bundle = &rt3_bundle_tables;
  rt3_status status = check_tables(bundle);
  if (status == RT3_OK) status = rt3_check_cpu(bundle->features);
  if (status != RT3_OK) return status;
  rt3_model *opened = calloc(1, sizeof *opened);
  if (opened == NULL) return rt3_fail(RT3_ERROR_MEMORY, "rt3_open: no memory for a handle");
  void *workspace = NULL;
  if (posix_memalign(&workspace, RT3_ALIGNMENT, bundle->workspace_bytes) != 0) {
    free(opened);
    return rt3_fail(RT3_ERROR_MEMORY, "rt3_open: no memory for a workspace of %llu bytes",
                    (unsigned long long)bundle->workspace_bytes);
  }
  memset(workspace, 0, bundle->workspace_bytes); /* touch every page now, not in the first run */
  opened->bundle = bundle;
  opened->workspace = workspace;
  atomic_init(&opened->threads, rt3_online_cores());
  atomic_init(&opened->choice, 0);
  atomic_init(&opened->busy, 0);
  *model = opened;
  return RT3_OK;
}

void rt3_close(rt3_model *model) {
  if (model == NULL) return;
  rt3_pool_close(model->pool);
  free(model->workspace);
  free(model);
}

bool rt3_take_handle(rt3_model *model) {
  const int ours = (int)getpid();
  int holder = 0;
  do {
    if (holder == ours) return false;
  } while (
      !atomic_compare_exchange_weak_explicit(&model->busy, &holder, ours, memory_order_acq_rel, memory_order_acquire));
  return true;
}

void rt3_release_handle(rt3_model *model) { atomic_store_explicit(&model->busy, 0, memory_order_release); }

int32_t rt3_max_threads(const rt3_model *model) {
  (void)model;
  return RT3_MAX_THREADS;
}

int32_t rt3_threads(const rt3_model *model) {
  if (model == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_threads: model is NULL");
  return atomic_load_explicit(&((rt3_model *)model)->threads, memory_order_relaxed);
}

rt3_status rt3_set_threads(rt3_model *model, int32_t threads) {
  if (model == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_set_threads: model is NULL");
  if (threads < 1 || threads > RT3_MAX_THREADS)
    return rt3_fail(RT3_ERROR_ARGUMENT, "%d threads: this bundle was compiled for 1 to %d", (int)threads,
                    RT3_MAX_THREADS);
  if (!rt3_take_handle(model)) return rt3_fail(RT3_ERROR_BUSY, "rt3_set_threads: the handle is running");
  atomic_store_explicit(&model->threads, threads, memory_order_relaxed);
  rt3_release_handle(model);
  return RT3_OK;
}

rt3_status rt3_match_pool(rt3_model *model) {
  const int32_t wanted = atomic_load_explicit(&model->threads, memory_order_relaxed);
  if (rt3_pool_threads(model->pool) == wanted && rt3_pool_is_ours(model->pool)) return RT3_OK;
  rt3_pool_close(model->pool);
  model->pool = wanted > 1 ? rt3_pool_open(wanted) : NULL;
  if (rt3_pool_threads(model->pool) == wanted) return RT3_OK;
  return rt3_fail(RT3_ERROR_SYSTEM, "cannot start %d threads", (int)wanted);
}
