/* The same functions for tvm_ffi.load_module and TVM RPC.
 *
 * open() -> handle; close(handle); levels(); level(handle); set_level(handle, i); set_threads(handle, n);
 * set_frequency(handle, hz) -> 1 when below the range; run(handle, inputs..., outputs...) with the inputs in the
 * bundle's order, tokens as int64 or int32 (batch, length), and float32 outputs of the shape they will have, None for
 * an input that is left out or an output that nobody wants; profile(handle, inputs..., seconds) -> how many steps it
 * has run, each timed in float64 seconds; axis(i, d) -> axis d of tensor i, inputs first, as rt3_tensor_info has it,
 * its rank for d = -1, its dtype for d = -2. Symbols of tvm-ffi are weak: without it the bundle still loads.
 */
#include <tvm/ffi/c_api.h>

#include "rt3_internal.h"

#pragma weak TVMFFIErrorSetRaisedFromCStr

#ifndef RT3_MAX_TENSORS /* codegen sets it: inputs and outputs of this bundle */
#define RT3_MAX_TENSORS 1
#endif

static int raise_error(const char *kind, const char *message) {
  if (&TVMFFIErrorSetRaisedFromCStr != NULL) TVMFFIErrorSetRaisedFromCStr(kind, message);
  return -1;
}

static int raise_status(rt3_status status) {
  return status < 0 ? raise_error(status == RT3_ERROR_ARGUMENT ? "ValueError" : "RuntimeError", rt3_last_error()) : 0;
}

static int return_int(TVMFFIAny *result, int64_t value) {
  result->type_index = kTVMFFIInt;
  result->zero_padding = 0;
  result->v_int64 = value;
  return 0;
}

static rt3_model *handle_of(const TVMFFIAny *args, int32_t count) {
  return count > 0 && args[0].type_index == kTVMFFIOpaquePtr ? args[0].v_ptr : NULL;
}

static const DLTensor *tensor_of(const TVMFFIAny *arg) {
  if (arg->type_index == kTVMFFIDLTensorPtr) return arg->v_ptr;
  if (arg->type_index == kTVMFFITensor) return (const DLTensor *)(const void *)(arg->v_obj + 1);
  return NULL;
}

#define RT3_FFI(name) RT3_API int __tvm_ffi_##name(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result)

RT3_FFI(open);
RT3_FFI(close);
RT3_FFI(levels);
RT3_FFI(level);
RT3_FFI(set_level);
RT3_FFI(set_frequency);
RT3_FFI(set_threads);
RT3_FFI(run);
RT3_FFI(profile);
RT3_FFI(axis);

RT3_FFI(open) {
  (void)self, (void)args, (void)count;
  rt3_model *model = NULL;
  const rt3_status status = rt3_open(&model);
  result->type_index = kTVMFFIOpaquePtr;
  result->zero_padding = 0;
  result->v_ptr = model;
  return raise_status(status);
}

RT3_FFI(close) {
  (void)self;
  rt3_close(handle_of(args, count));
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  return 0;
}

RT3_FFI(levels) {
  (void)self, (void)args, (void)count;
  return return_int(result, rt3_level_count(NULL));
}

RT3_FFI(level) {
  (void)self;
  rt3_model *model = handle_of(args, count);
  if (model == NULL) return raise_error("TypeError", "level(handle)");
  return return_int(result, rt3_current_level(model));
}

RT3_FFI(set_level) {
  (void)self;
  rt3_model *model = handle_of(args, count);
  if (model == NULL || count != 2 || args[1].type_index != kTVMFFIInt)
    return raise_error("TypeError", "set_level(handle, int)");
  return raise_status(rt3_set_level(model, (int32_t)args[1].v_int64)) != 0 ? -1 : return_int(result, 0);
}

RT3_FFI(set_threads) {
  (void)self;
  rt3_model *model = handle_of(args, count);
  if (model == NULL || count != 2 || args[1].type_index != kTVMFFIInt)
    return raise_error("TypeError", "set_threads(handle, int)");
  return raise_status(rt3_set_threads(model, (int32_t)args[1].v_int64)) != 0 ? -1 : return_int(result, 0);
}

RT3_FFI(set_frequency) {
  (void)self;
  rt3_model *model = handle_of(args, count);
  if (model == NULL || count != 2 || (args[1].type_index != kTVMFFIFloat && args[1].type_index != kTVMFFIInt))
    return raise_error("TypeError", "set_frequency(handle, hz)");
  const double hz = args[1].type_index == kTVMFFIFloat ? args[1].v_float64 : (double)args[1].v_int64;
  const rt3_status status = rt3_set_frequency(model, hz);
  return raise_status(status) != 0 ? -1 : return_int(result, status == RT3_BELOW_RANGE);
}

static bool convert(const DLTensor *source, const char *name, bool tokens, rt3_tensor *target) {
  const bool integer = source->dtype.code == kDLInt && (source->dtype.bits == 64 || source->dtype.bits == 32);
  const bool real = source->dtype.code == kDLFloat && source->dtype.bits == 32;
  if (source->ndim > RT3_MAX_RANK || source->dtype.lanes != 1 || (tokens ? !integer : !real)) return false;
  target->name = name;
  target->dtype = real ? RT3_FLOAT32 : source->dtype.bits == 64 ? RT3_INT64 : RT3_INT32;
  target->rank = source->ndim;
  target->data = (char *)source->data + source->byte_offset;
  target->bytes = source->dtype.bits / 8;
  for (int32_t d = 0; d < source->ndim; ++d) {
    target->shape[d] = source->shape[d];
    target->bytes *= (size_t)source->shape[d];
  }
  return true;
}

static const rt3_tensor_info *info_of(int64_t index) {
  const rt3_bundle *bundle = &rt3_bundle_tables;
  return index < bundle->input_count ? &bundle->inputs[index].info : &bundle->outputs[index - bundle->input_count];
}

/* Converts the tensors [first, last) of the bundle's inputs and outputs that are given; -1: one cannot be. */
static int32_t convert_all(const TVMFFIAny *args, int32_t first, int32_t last, rt3_tensor *tensors) {
  int32_t given = 0;
  for (int32_t i = first; i < last; ++i) {
    if (args[i].type_index == kTVMFFINone) continue;
    const rt3_tensor_info *info = info_of(i);
    const bool tokens = i < rt3_bundle_tables.input_count && info->dtype != RT3_FLOAT32;
    const DLTensor *source = tensor_of(&args[i]);
    if (source == NULL || !convert(source, info->name, tokens, &tensors[given++])) return -1;
  }
  return given;
}

RT3_FFI(run) {
  (void)self;
  rt3_model *model = handle_of(args, count);
  const int32_t inputs = rt3_bundle_tables.input_count, outputs = rt3_bundle_tables.output_count;
  if (model == NULL || inputs + outputs != RT3_MAX_TENSORS || count != 1 + RT3_MAX_TENSORS)
    return raise_error("TypeError", "run(handle, every input, every output)");
  rt3_tensor tensors[RT3_MAX_TENSORS];
  const int32_t ins = convert_all(args + 1, 0, inputs, tensors);
  const int32_t outs = ins < 0 ? -1 : convert_all(args + 1, inputs, inputs + outputs, tensors + ins);
  if (outs < 0) return raise_error("TypeError", "run: tokens are int64 or int32 tensors, all else float32 tensors");
  const rt3_status status = rt3_run(model, tensors, ins, tensors + ins, outs);
  return raise_status(status) != 0 ? -1 : return_int(result, 0);
}

RT3_FFI(profile) {
  (void)self;
  rt3_model *model = handle_of(args, count);
  const int32_t inputs = rt3_bundle_tables.input_count;
  const DLTensor *times = model != NULL && count == 2 + inputs ? tensor_of(&args[1 + inputs]) : NULL;
  if (times == NULL || inputs > RT3_MAX_TENSORS || times->ndim != 1 || times->dtype.code != kDLFloat ||
      times->dtype.bits != 64 || times->dtype.lanes != 1 || times->shape[0] > INT32_MAX)
    return raise_error("TypeError", "profile(handle, every input, float64 seconds)");
  rt3_tensor tensors[RT3_MAX_TENSORS];
  const int32_t ins = convert_all(args + 1, 0, inputs, tensors);
  if (ins < 0) return raise_error("TypeError", "profile: tokens are int64 or int32 tensors, all else float32 tensors");
  int32_t steps = (int32_t)times->shape[0];
  double *seconds = (double *)(void *)((char *)times->data + times->byte_offset);
  const rt3_status status = rt3_profile(model, tensors, ins, NULL, 0, seconds, &steps);
  return raise_status(status) != 0 ? -1 : return_int(result, steps);
}

RT3_FFI(axis) {
  (void)self;
  const int32_t tensors = rt3_bundle_tables.input_count + rt3_bundle_tables.output_count;
  if (count != 2 || args[0].type_index != kTVMFFIInt || args[1].type_index != kTVMFFIInt || args[0].v_int64 < 0 ||
      args[0].v_int64 >= tensors)
    return raise_error("TypeError", "axis(index of a tensor, axis)");
  const rt3_tensor_info *info = info_of(args[0].v_int64);
  const int64_t axis = args[1].v_int64;
  if (axis < -2 || axis >= info->rank) return raise_error("ValueError", "axis: the tensor has no such axis");
  return return_int(result, axis == -1 ? info->rank : axis == -2 ? (int64_t)info->dtype : info->axes[axis]);
}
