/* The caller's tensors: what they must be, and the way into the workspace and out of it. */
#include <string.h>

#include "rt3_internal.h"

int32_t rt3_input_count(const rt3_model *model) { return rt3_bundle_of(model)->input_count; }

int32_t rt3_output_count(const rt3_model *model) { return rt3_bundle_of(model)->output_count; }

rt3_status rt3_input(const rt3_model *model, int32_t index, rt3_tensor_info *info) {
  const rt3_bundle *bundle = rt3_bundle_of(model);
  if (model == NULL || info == NULL || index < 0 || index >= bundle->input_count)
    return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_input: NULL, or index %d of %d inputs", (int)index,
                    (int)bundle->input_count);
  *info = bundle->inputs[index].info;
  return RT3_OK;
}

rt3_status rt3_output(const rt3_model *model, int32_t index, rt3_tensor_info *info) {
  const rt3_bundle *bundle = rt3_bundle_of(model);
  if (model == NULL || info == NULL || index < 0 || index >= bundle->output_count)
    return rt3_fail(RT3_ERROR_ARGUMENT, "rt3_output: NULL, or index %d of %d outputs", (int)index,
                    (int)bundle->output_count);
  *info = bundle->outputs[index];
  return RT3_OK;
}

int64_t rt3_max_batch(const rt3_model *model) { return rt3_bundle_of(model)->batch; }

int64_t rt3_max_length(const rt3_model *model) { return rt3_bundle_of(model)->max_length; }

static const rt3_tensor *find_tensor(const rt3_tensor *tensors, int32_t count, const char *name) {
  for (int32_t i = 0; i < count; ++i)
    if (tensors[i].name != NULL && strcmp(tensors[i].name, name) == 0) return &tensors[i];
  return NULL;
}

static rt3_status check_names(const rt3_bundle *bundle, const rt3_tensor *tensors, int32_t count, bool inputs) {
  const int32_t known = inputs ? bundle->input_count : bundle->output_count;
  for (int32_t i = 0; i < count; ++i) {
    bool found = false;
    for (int32_t j = 0; j < known && tensors[i].name != NULL && !found; ++j) {
      const char *name = inputs ? bundle->inputs[j].info.name : bundle->outputs[j].name;
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
static rt3_status check_axis(const rt3_bundle *bundle, const char *name, int64_t axis, int64_t size,
                             rt3_extent *extent) {
  if (axis >= 0)
    return size == axis ? RT3_OK
                        : rt3_fail(RT3_ERROR_ARGUMENT, "input '%s': an axis of %lld, this bundle takes %lld", name,
                                   (long long)size, (long long)axis);
  const bool is_batch = axis == RT3_AXIS_BATCH;
  const char *what = is_batch ? "batch" : "length";
  const int64_t most = is_batch ? bundle->batch : bundle->max_length;
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

static rt3_status check_input(const rt3_bundle *bundle, const rt3_tensor *tensor, const rt3_input_spec *spec,
                              rt3_extent *extent) {
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
    const rt3_status status = check_axis(bundle, info->name, info->axes[d], tensor->shape[d], extent);
    if (status != RT3_OK) return status;
    count *= tensor->shape[d];
  }
  return numbers ? RT3_OK : check_values(tensor, spec, count);
}

const rt3_variant *rt3_find_variant(const rt3_bundle *bundle, int32_t level, int64_t length) {
  for (int32_t i = 0; i < bundle->variant_count; ++i) {
    const rt3_variant *variant = &bundle->variants[i];
    if (variant->level == level && variant->length >= length) return variant;
  }
  return NULL; /* rt3_check_tensors has made sure of the length */
}

/* Where padding shows in the outputs nothing may be padded. */
static rt3_status check_exact(const rt3_bundle *bundle, int64_t length) {
  const int64_t compiled = rt3_find_variant(bundle, 0, length)->length;
  if (!bundle->exact_lengths || compiled == length) return RT3_OK;
  return rt3_fail(RT3_ERROR_ARGUMENT,
                  "length %lld: outputs of this model depend on padding, so it takes only lengths "
                  "that it was compiled for; the next is %lld",
                  (long long)length, (long long)compiled);
}

static rt3_status check_inputs(const rt3_bundle *bundle, const rt3_tensor *inputs, int32_t count, rt3_extent *extent) {
  rt3_status status = check_names(bundle, inputs, count, true);
  for (int32_t i = 0; i < bundle->input_count && status == RT3_OK; ++i) {
    const rt3_input_spec *spec = &bundle->inputs[i];
    const rt3_tensor *tensor = find_tensor(inputs, count, spec->info.name);
    if (tensor != NULL)
      status = check_input(bundle, tensor, spec, extent);
    else if (!spec->info.optional)
      status = rt3_fail(RT3_ERROR_ARGUMENT, "input '%s' is missing", spec->info.name);
  }
  if (extent->length == 0) extent->length = 1; /* no input has a length: there is one variant a level */
  return status == RT3_OK ? check_exact(bundle, extent->length) : status;
}

static int64_t axis_size(int64_t axis, const rt3_extent *extent) {
  return axis == RT3_AXIS_BATCH ? extent->batch : axis == RT3_AXIS_LENGTH ? extent->length : axis;
}

/* Fills in dtype, rank and shape; checks the caller's room. */
static rt3_status shape_output(const rt3_tensor_info *info, const rt3_extent *extent, rt3_tensor *tensor) {
  size_t bytes = sizeof(float);
  tensor->dtype = info->dtype;
  tensor->rank = info->rank;
  for (int32_t d = 0; d < info->rank; ++d) {
    tensor->shape[d] = axis_size(info->axes[d], extent);
    bytes *= (size_t)tensor->shape[d];
  }
  if (tensor->data == NULL || tensor->bytes < bytes)
    return rt3_fail(RT3_ERROR_ARGUMENT, "output '%s': needs %zu bytes, data is NULL or has %zu", info->name, bytes,
                    tensor->data == NULL ? (size_t)0 : tensor->bytes);
  return RT3_OK;
}

rt3_status rt3_check_tensors(const rt3_bundle *bundle, const rt3_tensors *tensors, rt3_extent *extent) {
  rt3_status status = check_inputs(bundle, tensors->inputs, tensors->input_count, extent);
  if (status == RT3_OK) status = check_names(bundle, tensors->outputs, tensors->output_count, false);
  for (int32_t i = 0; i < bundle->output_count && status == RT3_OK; ++i) {
    const rt3_tensor_info *info = &bundle->outputs[i];
    rt3_tensor *tensor = (rt3_tensor *)find_tensor(tensors->outputs, tensors->output_count, info->name);
    if (tensor != NULL) status = shape_output(info, extent, tensor);
  }
  return status;
}

static void copy_numbers(const rt3_bundle *bundle, const rt3_tensor *tensor, const rt3_input_spec *spec,
                         const rt3_extent *extent, float *target) {
  size_t row = 1;
  for (int32_t d = 1; d < spec->info.rank; ++d) row *= (size_t)spec->info.axes[d];
  const size_t given = (size_t)extent->batch * row, all = (size_t)bundle->batch * row;
  memcpy(target, tensor->data, given * sizeof(float));
  memset(target + given, 0, (all - given) * sizeof(float));
}

static void copy_tokens(const rt3_bundle *bundle, const rt3_tensor *tensor, const rt3_input_spec *spec,
                        const rt3_extent *extent, int64_t variant_length, int64_t *target) {
  for (int64_t b = 0; b < bundle->batch; ++b) {
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

void rt3_copy_inputs(const rt3_bundle *bundle, const rt3_variant *variant, const rt3_tensors *tensors,
                     const rt3_extent *extent, unsigned char *workspace) {
  for (int32_t i = 0; i < bundle->input_count + bundle->internal_count; ++i) {
    const rt3_input_spec *spec = &bundle->inputs[i];
    const rt3_tensor *tensor = find_tensor(tensors->inputs, tensors->input_count, spec->info.name);
    void *target = workspace + variant->inputs[i];
    if (spec->info.dtype == RT3_FLOAT32)
      copy_numbers(bundle, tensor, spec, extent, target);
    else
      copy_tokens(bundle, tensor, spec, extent, variant->length, target);
  }
}

/* Copies what is not padding, along axis d and those behind it; sizes are in floats. */
static void copy_output(const rt3_tensor *tensor, const rt3_tensor_info *info, const rt3_extent *compiled, int32_t d,
                        const float *source, float *target) {
  if (d == info->rank) {
    *target = *source;
    return;
  }
  int64_t from = 1, to = 1;
  bool whole = true; /* everything behind this axis is contiguous in both */
  for (int32_t i = d + 1; i < info->rank; ++i) {
    const int64_t size = axis_size(info->axes[i], compiled);
    whole = whole && size == tensor->shape[i];
    from *= size;
    to *= tensor->shape[i];
  }
  if (whole) {
    memcpy(target, source, (size_t)(tensor->shape[d] * to) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < tensor->shape[d]; ++i)
    copy_output(tensor, info, compiled, d + 1, source + i * from, target + i * to);
}

void rt3_copy_outputs(const rt3_bundle *bundle, const rt3_variant *variant, const rt3_tensors *tensors,
                      const unsigned char *workspace) {
  const rt3_extent compiled = {bundle->batch, variant->length};
  for (int32_t i = 0; i < bundle->output_count; ++i) {
    const rt3_tensor_info *info = &bundle->outputs[i];
    const rt3_tensor *tensor = find_tensor(tensors->outputs, tensors->output_count, info->name);
    const void *source = workspace + variant->outputs[i];
    if (tensor != NULL) copy_output(tensor, info, &compiled, 0, source, tensor->data);
  }
}
