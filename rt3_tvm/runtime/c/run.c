/* An inference: the steps of one variant, one after the other. */
#define _POSIX_C_SOURCE 200809L

#include <time.h>

#include "rt3_internal.h"

double rt3_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Where rt3_profile puts its times; NULL elsewhere. */
typedef struct {
  double *seconds;
  int32_t *count;
} rt3_profile_sink;

static void run_steps(const rt3_model *model, const rt3_variant *variant, double *seconds) {
  const unsigned char *const segments[RT3_SEGMENTS] = {
      [RT3_WORKSPACE] = model->workspace,
      [RT3_WEIGHTS] = rt3_weights,
  };
  rt3_pool_begin(model->pool);
  for (int32_t s = 0; s < variant->step_count; ++s) {
    const rt3_step *step = &variant->steps[s];
    const rt3_kernel *kernel = &model->bundle->kernels[step->kernel];
    void *args[RT3_MAX_ARGS];
    /* Kernels never write to weights: they only take their addresses as they take every other. */
    for (int32_t a = 0; a < kernel->arg_count; ++a)
      args[a] = (void *)(uintptr_t)(segments[step->args[a].segment] + step->args[a].offset);
    const double start = seconds != NULL ? rt3_now() : 0.0;
    rt3_pool_run(model->pool, kernel, args);
    if (seconds != NULL) seconds[s] = rt3_now() - start;
  }
  rt3_pool_end(model->pool);
}

static rt3_status run_locked(rt3_model *model, const rt3_tensors *tensors, const rt3_profile_sink *sink) {
  const rt3_bundle *bundle = model->bundle;
  rt3_extent extent = {0, 0};
  rt3_status status = rt3_check_tensors(bundle, tensors, &extent);
  if (status == RT3_OK) status = rt3_match_pool(model);
  if (status != RT3_OK) return status;

  bool follow = false;
  const double start = rt3_now();
  const int32_t level = rt3_take_level(model, start, &follow);
  const rt3_variant *variant = rt3_find_variant(bundle, level, extent.length);
  if (sink != NULL) {
    const int32_t room = *sink->count;
    *sink->count = variant->step_count;
    if (room < variant->step_count)
      return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_profile: room for %d steps, this variant has %d", (int)room,
                      (int)variant->step_count);
  }
  rt3_copy_inputs(bundle, variant, tensors, &extent, model->workspace);
  run_steps(model, variant, sink != NULL ? sink->seconds : NULL);
  rt3_copy_outputs(bundle, variant, tensors, model->workspace);
  if (follow) rt3_governor_finish(&model->governor, level, rt3_now() - start);
  return RT3_OK;
}

static rt3_status run_checked(rt3_model *model, const rt3_tensors *tensors, const rt3_profile_sink *sink) {
  if (model == NULL || (tensors->inputs == NULL && tensors->input_count > 0) ||
      (tensors->outputs == NULL && tensors->output_count > 0))
    return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_run: model, inputs or outputs is NULL");
  if (!rt3_take_handle(model))
    return rt3_fail(RT3_ERROR_BUSY, "rt3_run: the handle is running in another thread: open one handle per thread");
  const rt3_status status = run_locked(model, tensors, sink);
  rt3_release_handle(model);
  return status;
}

rt3_status rt3_run(rt3_model *model, const rt3_tensor *inputs, int32_t input_count, rt3_tensor *outputs,
                   int32_t output_count) {
  const rt3_tensors tensors = {inputs, input_count, outputs, output_count};
  return run_checked(model, &tensors, NULL);
}

rt3_status rt3_profile(rt3_model *model, const rt3_tensor *inputs, int32_t input_count, rt3_tensor *outputs,
                       int32_t output_count, double *seconds, int32_t *count) {
  if (seconds == NULL || count == NULL) return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_profile: seconds or count is NULL");
  const rt3_tensors tensors = {inputs, input_count, outputs, output_count};
  const rt3_profile_sink sink = {seconds, count};
  return run_checked(model, &tensors, &sink);
}
