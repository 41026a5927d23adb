/* Handles, levels and inference. */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "rt3_internal.h"

#define RT3_ALIGNMENT 64

static _Thread_local char last_error[256];

rt3_status rt3_fail(rt3_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  return status;
}

const char *rt3_last_error(void) { return last_error; }

const char *rt3_metadata(void) { return rt3_metadata_json; }

double rt3_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* What kernels and the choice of a level rely on: a damaged table must not send them out of bounds. */
static rt3_status check_tables(void) {
  for (int32_t i = 0; i < rt3_bundle_tables.input_count; ++i) {
    const rt3_input_spec *spec = &rt3_bundle_tables.inputs[i];
    if (spec->info.dtype != RT3_FLOAT32 && (spec->fill < 0 || spec->fill >= spec->info.limit))
      return rt3_fail(RT3_ERROR_BUNDLE, "input '%s' is padded with %lld, outside [0, %lld)", spec->info.name,
                      (long long)spec->fill, (long long)spec->info.limit);
  }
  for (int32_t i = 0; i < rt3_bundle_tables.level_count; ++i) {
    const rt3_level_info *level = &rt3_bundle_tables.levels[i];
    const double above = i > 0 ? level[-1].frequency_hz : INFINITY;
    /* Written so that NaN fails. */
    if (!(level->frequency_hz > 0 && level->frequency_hz < above) ||
        !(level->deadline_s >= 0 && level->deadline_s < INFINITY) || !(level->density >= 0 && level->density <= 1))
      return rt3_fail(RT3_ERROR_BUNDLE, "level %d: %g Hz below %g Hz, deadline %g s, density %g are no level", (int)i,
                      level->frequency_hz, above, level->deadline_s, level->density);
  }
  return RT3_OK;
}

rt3_status rt3_open(rt3_model **model) {
  if (model == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_open: model is NULL");
  *model = NULL;
  rt3_status status = check_tables();
  if (status == RT3_OK) status = rt3_check_cpu();
  if (status != RT3_OK) return status;
  rt3_model *opened = calloc(1, sizeof *opened);
  if (opened == NULL) return rt3_fail(RT3_ERROR_MEMORY, "rt3_open: no memory for a handle");
  void *workspace = NULL;
  if (posix_memalign(&workspace, RT3_ALIGNMENT, rt3_bundle_tables.workspace_bytes) != 0) {
    free(opened);
    return rt3_fail(RT3_ERROR_MEMORY, "rt3_open: no memory for a workspace of %llu bytes",
                    (unsigned long long)rt3_bundle_tables.workspace_bytes);
  }
  memset(workspace, 0, rt3_bundle_tables.workspace_bytes); /* touch every page now, not in the first run */
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

int32_t rt3_level_count(const rt3_model *model) {
  (void)model;
  return rt3_bundle_tables.level_count;
}

static rt3_status check_level(int32_t level) {
  if (level >= 0 && level < rt3_bundle_tables.level_count) return RT3_OK;
  return rt3_fail(RT3_ERROR_ARGUMENT, "level %d: choose 0 to %d", (int)level, (int)rt3_bundle_tables.level_count - 1);
}

rt3_status rt3_level(const rt3_model *model, int32_t level, rt3_level_info *info) {
  if (model == NULL || info == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_level: model or info is NULL");
  rt3_status status = check_level(level);
  if (status == RT3_OK) *info = rt3_bundle_tables.levels[level];
  return status;
}

int32_t rt3_current_level(const rt3_model *model) {
  if (model == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_current_level: model is NULL");
  return atomic_load_explicit(&((rt3_model *)model)->choice, memory_order_acquire) & ~RT3_FOLLOW;
}

rt3_status rt3_set_level(rt3_model *model, int32_t level) {
  if (model == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_set_level: model is NULL");
  rt3_status status = check_level(level);
  if (status != RT3_OK) return status;
  atomic_store_explicit(&model->choice, level, memory_order_release);
  return RT3_OK;
}

/* Takes the handle for this thread; false when another one has it. One of a process that was forked does not count: it
 * is not in this process and will never give the handle back. */
static bool take_handle(rt3_model *model) {
  const int ours = (int)getpid();
  int holder = 0;
  do {
    if (holder == ours) return false;
  } while (
      !atomic_compare_exchange_weak_explicit(&model->busy, &holder, ours, memory_order_acq_rel, memory_order_acquire));
  return true;
}

static void release_handle(rt3_model *model) { atomic_store_explicit(&model->busy, 0, memory_order_release); }

static rt3_level_table level_table(void) {
  return (rt3_level_table){rt3_bundle_tables.levels, rt3_bundle_tables.level_count};
}

rt3_status rt3_set_frequency(rt3_model *model, double hz) {
  if (model == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_set_frequency: model is NULL");
  if (!(hz > 0 && hz < INFINITY))
    return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_set_frequency: %g Hz is not a frequency", hz);
  bool below = false;
  int32_t level = rt3_level_for(level_table(), hz, &below);
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
  if (!take_handle(model)) return rt3_fail(RT3_ERROR_BUSY, "rt3_set_auto: the handle is running");
  memcpy(model->clock_path, path, sizeof path);
  rt3_governor_start(&model->governor, o, level_table(), rt3_now());
  bool below = false;
  const int32_t level = rt3_level_for(level_table(), hz, &below);
  atomic_store_explicit(&model->choice, level | RT3_FOLLOW, memory_order_release);
  release_handle(model);
  return RT3_OK;
}

int32_t rt3_input_count(const rt3_model *model) {
  (void)model;
  return rt3_bundle_tables.input_count;
}

int32_t rt3_output_count(const rt3_model *model) {
  (void)model;
  return rt3_bundle_tables.output_count;
}

rt3_status rt3_input(const rt3_model *model, int32_t index, rt3_tensor_info *info) {
  if (model == NULL || info == NULL || index < 0 || index >= rt3_bundle_tables.input_count)
    return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_input: NULL, or index %d of %d inputs", (int)index,
                    (int)rt3_bundle_tables.input_count);
  *info = rt3_bundle_tables.inputs[index].info;
  return RT3_OK;
}

rt3_status rt3_output(const rt3_model *model, int32_t index, rt3_tensor_info *info) {
  if (model == NULL || info == NULL || index < 0 || index >= rt3_bundle_tables.output_count)
    return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_output: NULL, or index %d of %d outputs", (int)index,
                    (int)rt3_bundle_tables.output_count);
  *info = rt3_bundle_tables.outputs[index];
  return RT3_OK;
}

int64_t rt3_max_batch(const rt3_model *model) {
  (void)model;
  return rt3_bundle_tables.batch;
}

int64_t rt3_max_length(const rt3_model *model) {
  (void)model;
  return rt3_bundle_tables.max_length;
}

/* Batch and length of one call. */
typedef struct {
  int64_t batch, length;
} rt3_extent;

static const rt3_tensor *find_tensor(const rt3_tensor *tensors, int32_t count, const char *name) {
  for (int32_t i = 0; i < count; ++i)
    if (tensors[i].name != NULL && strcmp(tensors[i].name, name) == 0) return &tensors[i];
  return NULL;
}

static rt3_status check_names(const rt3_tensor *tensors, int32_t count, bool inputs) {
  const int32_t known = inputs ? rt3_bundle_tables.input_count : rt3_bundle_tables.output_count;
  for (int32_t i = 0; i < count; ++i) {
    bool found = false;
    for (int32_t j = 0; j < known && tensors[i].name != NULL && !found; ++j) {
      const char *name = inputs ? rt3_bundle_tables.inputs[j].info.name : rt3_bundle_tables.outputs[j].name;
      found = strcmp(tensors[i].name, name) == 0;
    }
    if (!found)
      return rt3_fail(RT3_ERROR_ARGUMENT, "no %s '%s'", inputs ? "input" : "output",
                      tensors[i].name != NULL ? tensors[i].name : "(NULL)");
  }
  return RT3_OK;
}

static int64_t input_value(const rt3_tensor *tensor, int64_t index) {
  return tensor->dtype == RT3_INT64 ? ((const int64_t *)tensor->data)[index] : ((const int32_t *)tensor->data)[index];
}

/* Checks one axis against what was compiled, and batch and length against the other inputs. */
static rt3_status check_axis(const char *name, int64_t axis, int64_t size, rt3_extent *extent) {
  if (axis >= 0)
    return size == axis ? RT3_OK
                        : rt3_fail(RT3_ERROR_ARGUMENT, "input '%s': an axis of %lld, this bundle takes %lld", name,
                                   (long long)size, (long long)axis);
  const bool is_batch = axis == RT3_AXIS_BATCH;
  const char *what = is_batch ? "batch" : "length";
  const int64_t most = is_batch ? rt3_bundle_tables.batch : rt3_bundle_tables.max_length;
  int64_t *seen = is_batch ? &extent->batch : &extent->length;
  if (size < 1 || size > most)
    return rt3_fail(RT3_ERROR_ARGUMENT, "input '%s': %s %lld, this bundle takes 1 to %lld", name, what, (long long)size,
                    (long long)most);
  if (*seen != 0 && *seen != size)
    return rt3_fail(RT3_ERROR_ARGUMENT, "input '%s': %s %lld differs from the other inputs' %lld", name, what,
                    (long long)size, (long long)*seen);
  *seen = size;
  return RT3_OK;
}

static rt3_status check_values(const rt3_tensor *tensor, const rt3_input_spec *spec, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = input_value(tensor, i);
    if (value < 0 || value >= spec->info.limit)
      return rt3_fail(RT3_ERROR_ARGUMENT, "input '%s': value %lld at position %lld is outside [0, %lld)",
                      spec->info.name, (long long)value, (long long)i, (long long)spec->info.limit);
  }
  return RT3_OK;
}

static rt3_status check_input(const rt3_tensor *tensor, const rt3_input_spec *spec, rt3_extent *extent) {
  const rt3_tensor_info *info = &spec->info;
  const bool numbers = info->dtype == RT3_FLOAT32;
  if (numbers ? tensor->dtype != RT3_FLOAT32 : tensor->dtype != RT3_INT64 && tensor->dtype != RT3_INT32)
    return rt3_fail(RT3_ERROR_ARGUMENT, "input '%s': dtype must be %s", info->name,
                    numbers ? "float32" : "int64 or int32");
  if (tensor->rank != info->rank)
    return rt3_fail(RT3_ERROR_ARGUMENT, "input '%s': rank %d, expected %d", info->name, (int)tensor->rank,
                    (int)info->rank);
  if (tensor->data == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "input '%s': data is NULL", info->name);
  int64_t count = 1;
  for (int32_t d = 0; d < info->rank; ++d) {
    const rt3_status status = check_axis(info->name, info->axes[d], tensor->shape[d], extent);
    if (status != RT3_OK) return status;
    count *= tensor->shape[d];
  }
  return numbers ? RT3_OK : check_values(tensor, spec, count);
}

static const rt3_variant *find_variant(int32_t level, int64_t length) {
  for (int32_t i = 0; i < rt3_bundle_tables.variant_count; ++i) {
    const rt3_variant *variant = &rt3_bundle_tables.variants[i];
    if (variant->level == level && variant->length >= length) return variant;
  }
  return NULL; /* check_inputs has made sure of the length */
}

/* Where padding shows in the outputs nothing may be padded. */
static rt3_status check_exact(int64_t length) {
  if (!rt3_bundle_tables.exact_lengths || find_variant(0, length)->length == length) return RT3_OK;
  return rt3_fail(RT3_ERROR_ARGUMENT,
                  "length %lld: outputs of this model depend on padding, so it takes only lengths "
                  "that it was compiled for; the next is %lld",
                  (long long)length, (long long)find_variant(0, length)->length);
}

static rt3_status check_inputs(const rt3_tensor *inputs, int32_t count, rt3_extent *extent) {
  rt3_status status = check_names(inputs, count, true);
  for (int32_t i = 0; i < rt3_bundle_tables.input_count && status == RT3_OK; ++i) {
    const rt3_input_spec *spec = &rt3_bundle_tables.inputs[i];
    const rt3_tensor *tensor = find_tensor(inputs, count, spec->info.name);
    if (tensor != NULL)
      status = check_input(tensor, spec, extent);
    else if (!spec->info.optional)
      status = rt3_fail(RT3_ERROR_ARGUMENT, "input '%s' is missing", spec->info.name);
  }
  if (extent->length == 0) extent->length = 1; /* no input has a length: there is one variant a level */
  return status == RT3_OK ? check_exact(extent->length) : status;
}

static void copy_numbers(const rt3_tensor *tensor, const rt3_input_spec *spec, const rt3_extent *extent,
                         float *target) {
  size_t row = 1;
  for (int32_t d = 1; d < spec->info.rank; ++d) row *= (size_t)spec->info.axes[d];
  const size_t given = (size_t)extent->batch * row, all = (size_t)rt3_bundle_tables.batch * row;
  memcpy(target, tensor->data, given * sizeof(float));
  memset(target + given, 0, (all - given) * sizeof(float));
}

static void copy_tokens(const rt3_tensor *tensor, const rt3_input_spec *spec, const rt3_extent *extent,
                        int64_t variant_length, int64_t *target) {
  for (int64_t b = 0; b < rt3_bundle_tables.batch; ++b) {
    for (int64_t t = 0; t < variant_length; ++t) {
      const bool real = b < extent->batch && t < extent->length;
      int64_t value = spec->fill;
      if (real && tensor != NULL)
        value = input_value(tensor, b * extent->length + t);
      else if (real && spec->mask)
        value = 1;
      target[b * variant_length + t] = value;
    }
  }
}

static int64_t axis_size(int64_t axis, int64_t batch, int64_t length) {
  return axis == RT3_AXIS_BATCH ? batch : axis == RT3_AXIS_LENGTH ? length : axis;
}

/* Fills in dtype, rank and shape; checks the caller's room. */
static rt3_status shape_output(const rt3_tensor_info *info, const rt3_extent *extent, rt3_tensor *tensor) {
  size_t bytes = sizeof(float);
  tensor->dtype = info->dtype;
  tensor->rank = info->rank;
  for (int32_t d = 0; d < info->rank; ++d) {
    tensor->shape[d] = axis_size(info->axes[d], extent->batch, extent->length);
    bytes *= (size_t)tensor->shape[d];
  }
  if (tensor->data == NULL || tensor->bytes < bytes)
    return rt3_fail(RT3_ERROR_ARGUMENT, "output '%s': needs %zu bytes, data is NULL or has %zu", info->name, bytes,
                    tensor->data == NULL ? (size_t)0 : tensor->bytes);
  return RT3_OK;
}

/* Copies what is not padding, along axis d and those behind it; sizes are in floats. */
static void copy_output(const rt3_tensor *tensor, const rt3_tensor_info *info, int64_t length, int32_t d,
                        const float *source, float *target) {
  if (d == info->rank) {
    *target = *source;
    return;
  }
  int64_t from = 1, to = 1;
  bool whole = true; /* everything behind this axis is contiguous in both */
  for (int32_t i = d + 1; i < info->rank; ++i) {
    const int64_t size = axis_size(info->axes[i], rt3_bundle_tables.batch, length);
    whole = whole && size == tensor->shape[i];
    from *= size;
    to *= tensor->shape[i];
  }
  if (whole) {
    memcpy(target, source, (size_t)(tensor->shape[d] * to) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < tensor->shape[d]; ++i)
    copy_output(tensor, info, length, d + 1, source + i * from, target + i * to);
}

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
  if (!take_handle(model)) return rt3_fail(RT3_ERROR_BUSY, "rt3_set_threads: the handle is running");
  atomic_store_explicit(&model->threads, threads, memory_order_relaxed);
  release_handle(model);
  return RT3_OK;
}

/* Makes the pool match the threads that are wanted. */
static rt3_status match_pool(rt3_model *model) {
  const int32_t wanted = atomic_load_explicit(&model->threads, memory_order_relaxed);
  if (rt3_pool_threads(model->pool) == wanted && rt3_pool_is_ours(model->pool)) return RT3_OK;
  rt3_pool_close(model->pool);
  model->pool = wanted > 1 ? rt3_pool_open(wanted) : NULL;
  if (rt3_pool_threads(model->pool) == wanted) return RT3_OK;
  return rt3_fail(RT3_ERROR_SYSTEM, "cannot start %d threads", (int)wanted);
}

/* Where rt3_profile puts its times; NULL elsewhere. */
typedef struct {
  double *seconds;
  int32_t *count;
} rt3_profile_sink;

static void run_steps(const rt3_variant *variant, unsigned char *workspace, rt3_pool *pool, double *seconds) {
  rt3_pool_begin(pool);
  for (int32_t s = 0; s < variant->step_count; ++s) {
    const rt3_step *step = &variant->steps[s];
    void *args[RT3_MAX_ARGS];
    for (int32_t a = 0; a < step->arg_count; ++a) {
      const rt3_place *place = &step->args[a];
      /* Kernels never write to weights: they only take their addresses as they take every other. */
      args[a] = place->in_weights ? (void *)(uintptr_t)(rt3_weights + place->offset) : workspace + place->offset;
    }
    const double start = seconds != NULL ? rt3_now() : 0.0;
    rt3_pool_run(pool, step, args);
    if (seconds != NULL) seconds[s] = rt3_now() - start;
  }
  rt3_pool_end(pool);
}

/* The level of a run that begins now. Under `auto` the governor chooses it, unless one is set by hand meanwhile. */
static int32_t take_level(rt3_model *model, double now, bool *follow) {
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

static rt3_status run_locked(rt3_model *model, const rt3_tensor *inputs, int32_t input_count, rt3_tensor *outputs,
                             int32_t output_count, const rt3_profile_sink *sink) {
  rt3_extent extent = {0, 0};
  rt3_status status = check_inputs(inputs, input_count, &extent);
  if (status == RT3_OK) status = check_names(outputs, output_count, false);
  for (int32_t i = 0; i < rt3_bundle_tables.output_count && status == RT3_OK; ++i) {
    const rt3_tensor_info *info = &rt3_bundle_tables.outputs[i];
    rt3_tensor *tensor = (rt3_tensor *)find_tensor(outputs, output_count, info->name);
    if (tensor != NULL) status = shape_output(info, &extent, tensor);
  }
  if (status == RT3_OK) status = match_pool(model);
  if (status != RT3_OK) return status;

  bool follow = false;
  const double start = rt3_now();
  const int32_t level = take_level(model, start, &follow);
  const rt3_variant *variant = find_variant(level, extent.length);
  if (sink != NULL) {
    const int32_t room = *sink->count;
    *sink->count = variant->step_count;
    if (room < variant->step_count)
      return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_profile: room for %d steps, this variant has %d", (int)room,
                      (int)variant->step_count);
  }
  for (int32_t i = 0; i < rt3_bundle_tables.input_count + rt3_bundle_tables.internal_count; ++i) {
    const rt3_input_spec *spec = &rt3_bundle_tables.inputs[i];
    const rt3_tensor *tensor = find_tensor(inputs, input_count, spec->info.name);
    void *target = model->workspace + variant->inputs[i];
    if (spec->info.dtype == RT3_FLOAT32)
      copy_numbers(tensor, spec, &extent, target);
    else
      copy_tokens(tensor, spec, &extent, variant->length, target);
  }
  run_steps(variant, model->workspace, model->pool, sink != NULL ? sink->seconds : NULL);
  for (int32_t i = 0; i < rt3_bundle_tables.output_count; ++i) {
    const rt3_tensor_info *info = &rt3_bundle_tables.outputs[i];
    const rt3_tensor *tensor = find_tensor(outputs, output_count, info->name);
    if (tensor != NULL)
      copy_output(tensor, info, variant->length, 0,
                  (const float *)(const void *)(model->workspace + variant->outputs[i]), tensor->data);
  }
  if (follow) rt3_governor_finish(&model->governor, level, rt3_now() - start);
  return RT3_OK;
}

static rt3_status run_checked(rt3_model *model, const rt3_tensor *inputs, int32_t input_count, rt3_tensor *outputs,
                              int32_t output_count, const rt3_profile_sink *sink) {
  if (model == NULL || (inputs == NULL && input_count > 0) || (outputs == NULL && output_count > 0))
    return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_run: model, inputs or outputs is NULL");
  if (!take_handle(model))
    return rt3_fail(RT3_ERROR_BUSY, "rt3_run: the handle is running in another thread: open one handle per thread");
  rt3_status status = run_locked(model, inputs, input_count, outputs, output_count, sink);
  release_handle(model);
  return status;
}

rt3_status rt3_run(rt3_model *model, const rt3_tensor *inputs, int32_t input_count, rt3_tensor *outputs,
                   int32_t output_count) {
  return run_checked(model, inputs, input_count, outputs, output_count, NULL);
}

rt3_status rt3_profile(rt3_model *model, const rt3_tensor *inputs, int32_t input_count, rt3_tensor *outputs,
                       int32_t output_count, double *seconds, int32_t *count) {
  if (seconds == NULL || count == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_profile: seconds or count is NULL");
  const rt3_profile_sink sink = {seconds, count};
  return run_checked(model, inputs, input_count, outputs, output_count, &sink);
}
