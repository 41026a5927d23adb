/* Runs one level of a bundle on inputs from a file and writes its outputs to another: `drive LEVEL INPUTS OUTPUTS
 * [RUNS]`.
 *
 * Both are native words: inputs int32 count, then for each name[64], int32 dtype, int32 rank, int64 shape[4], data;
 * outputs for each int32 rank, int64 shape[4], data. Exits with 3 where the bundle cannot be opened on this CPU.
 * With RUNS it runs so often, on one thread, and prints where rt3_open lies: whoever counts instructions finds the
 * bundle by it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "rt3.h"

#define MAX_TENSORS 64
#define NAME_BYTES 64

static int fail(int code, const char *what) {
  fprintf(stderr, "%s\n", what);
  return code;
}

static size_t elements(const rt3_tensor *tensor) {
  size_t count = 1;
  for (int32_t d = 0; d < tensor->rank; ++d) count *= (size_t)tensor->shape[d];
  return count;
}

static int read_tensor(FILE *file, rt3_tensor *tensor, char *name) {
  int32_t kind[2];
  if (fread(name, NAME_BYTES, 1, file) != 1 || fread(kind, sizeof kind, 1, file) != 1) return 0;
  if (fread(tensor->shape, sizeof tensor->shape, 1, file) != 1) return 0;
  tensor->name = name;
  tensor->dtype = (rt3_dtype)kind[0];
  tensor->rank = kind[1];
  tensor->bytes = elements(tensor) * (tensor->dtype == RT3_INT64 ? 8 : 4);
  tensor->data = malloc(tensor->bytes);
  return tensor->data != NULL && fread(tensor->data, tensor->bytes, 1, file) == 1;
}

/* Room for an output of the largest batch and length. */
static int make_room(const rt3_model *model, int32_t index, rt3_tensor *tensor) {
  rt3_tensor_info info;
  if (rt3_output(model, index, &info) != RT3_OK) return 0;
  tensor->name = info.name;
  tensor->bytes = sizeof(float);
  for (int32_t d = 0; d < info.rank; ++d) {
    const int64_t axis = info.axes[d];
    const int64_t size = axis == RT3_AXIS_BATCH    ? rt3_max_batch(model)
                         : axis == RT3_AXIS_LENGTH ? rt3_max_length(model)
                                                   : axis;
    tensor->bytes *= (size_t)size;
  }
  tensor->data = malloc(tensor->bytes);
  return tensor->data != NULL;
}

int main(int argc, char **argv) {
  static rt3_tensor inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  static char names[MAX_TENSORS][NAME_BYTES];
  rt3_model *model = NULL;
  if (argc != 4 && argc != 5) return fail(2, "usage: drive LEVEL INPUTS OUTPUTS [RUNS]");
  if (rt3_open(&model) != RT3_OK) return fail(3, rt3_last_error());

  FILE *file = fopen(argv[2], "rb");
  int32_t count = 0;
  if (file == NULL || fread(&count, sizeof count, 1, file) != 1 || count < 1 || count > MAX_TENSORS)
    return fail(2, "no inputs");
  for (int32_t i = 0; i < count; ++i)
    if (!read_tensor(file, &inputs[i], names[i])) return fail(2, "inputs end early");
  fclose(file);

  const int32_t results = rt3_output_count(model);
  if (results > MAX_TENSORS) return fail(2, "too many outputs");
  for (int32_t i = 0; i < results; ++i)
    if (!make_room(model, i, &outputs[i])) return fail(2, "no memory");
  if (rt3_set_level(model, (int32_t)strtol(argv[1], NULL, 10)) != RT3_OK) return fail(1, rt3_last_error());
  if (argc == 5) {
    if (rt3_set_threads(model, 1) != RT3_OK) return fail(1, rt3_last_error());
    printf("%" PRIxPTR "\n", (uintptr_t)rt3_open);
  }
  for (long runs = argc == 5 ? strtol(argv[4], NULL, 10) : 1; runs > 0; --runs)
    if (rt3_run(model, inputs, count, outputs, results) != RT3_OK) return fail(1, rt3_last_error());

  file = fopen(argv[3], "wb");
  if (file == NULL) return fail(2, "cannot write outputs");
  for (int32_t i = 0; i < results; ++i) {
    fwrite(&outputs[i].rank, sizeof outputs[i].rank, 1, file);
    fwrite(outputs[i].shape, sizeof outputs[i].shape, 1, file);
    fwrite(outputs[i].data, sizeof(float), elements(&outputs[i]), file);
  }
  rt3_close(model);
  return fclose(file) == 0 ? 0 : fail(2, "cannot write outputs");
}
