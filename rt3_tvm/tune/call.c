/* What a library of kernels that are measured has beside them: TVM calls by name, and fills arrays where they lie.
 *
 * Behind it come the kernels' entries, written by build.py: each a PLAN, whose arguments are tensors of which only the
 * data counts. place(n) says how far into its tensor each array begins. begin() and end() hold the threads awake in
 * between, as an inference does.
 */
#define _POSIX_C_SOURCE 200809L

#include <string.h>
#include <time.h>
#include <tvm/ffi/c_api.h>

#include "rt3_internal.h"

#define ENTRY(name)                                                                                             \
  __attribute__((visibility("default"))) int __tvm_ffi_##name(void *self, const TVMFFIAny *args, int32_t count, \
                                                              TVMFFIAny *result)

#define LINE 64
#define LINES 64 /* of a page of 4 KiB: what is behind them lies as before in every cache */

static rt3_pool *pool;
static size_t shifts[RT3_MAX_ARGS];

static int none(TVMFFIAny *result) {
  result->type_index = kTVMFFINone;
  result->zero_padding = 0;
  result->v_int64 = 0;
  return 0;
}

static const DLTensor *tensor_of(const TVMFFIAny *arg) {
  if (arg->type_index == kTVMFFIDLTensorPtr) return arg->v_ptr;
  if (arg->type_index == kTVMFFITensor) return (const DLTensor *)(const void *)(arg->v_obj + 1);
  return NULL;
}

static int64_t size_of(const DLTensor *tensor) {
  int64_t size = 1;
  for (int32_t d = 0; d < tensor->ndim; ++d) size *= tensor->shape[d];
  return size;
}

static uint32_t random_bits(uint32_t *state) {
  *state = *state * 1664525U + 1013904223U;
  return *state >> 8;
}

/* fill_numbers(tensor): small numbers of the tensor's type, none of them denormal. */
ENTRY(fill_numbers) {
  (void)self;
  const DLTensor *tensor = count == 1 ? tensor_of(&args[0]) : NULL;
  if (tensor == NULL) return -1;
  uint32_t state = 1;
  const int64_t size = size_of(tensor);
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits = random_bits(&state);
    if (tensor->dtype.code == kDLFloat && tensor->dtype.bits == 32)
      ((float *)tensor->data)[i] = (float)(bits & 0xffff) / 65536.0f - 0.5f;
    else if (tensor->dtype.code == kDLFloat && tensor->dtype.bits == 16) /* of either sign, from 0.125 to 0.5 */
      ((uint16_t *)tensor->data)[i] = (uint16_t)((bits & 0x8000) | 0x3000 | (bits & 0x07ff));
    else if (tensor->dtype.bits == 8)
      ((uint8_t *)tensor->data)[i] = (uint8_t)bits;
    else
      memset((char *)tensor->data + i * (tensor->dtype.bits / 8), 0, tensor->dtype.bits / 8);
  }
  return none(result);
}

/* fill_columns(tensor, columns, step): a table ([column blocks,] groups, kept) of `step` times the columns that a group
 * keeps, ascending over the blocks, spread over all columns. */
ENTRY(fill_columns) {
  (void)self;
  const DLTensor *tensor = count == 3 ? tensor_of(&args[0]) : NULL;
  if (tensor == NULL || tensor->ndim < 2 || tensor->ndim > 3) return -1;
  const int64_t columns = args[1].v_int64, step = args[2].v_int64;
  const int64_t *shape = tensor->shape + tensor->ndim - 2;
  const int64_t blocks = tensor->ndim == 3 ? tensor->shape[0] : 1, groups = shape[0], kept = shape[1];
  const int64_t all = blocks * kept;
  uint32_t state = 1;
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t k = 0; k < all; ++k) {
      const double spread = all >= columns ? 0.0 : (double)(random_bits(&state) & 0xffff) / 65536.0;
      int64_t column = (int64_t)(((double)k + spread) * (double)columns / (double)all);
      column = (column < columns ? column : columns - 1) * step;
      const int64_t at = (k / kept * groups + g) * kept + k % kept;
      if (tensor->dtype.bits == 16)
        ((uint16_t *)tensor->data)[at] = (uint16_t)column;
      else
        ((int32_t *)tensor->data)[at] = (int32_t)column;
    }
  }
  return none(result);
}

/* place(n, which): from now on each argument of which bit i of `which` is set begins some lines into its tensor, which
 * has a page more than is needed; other lines for another n. */
ENTRY(place) {
  (void)self;
  if (count != 2) return -1;
  uint32_t state = (uint32_t)args[0].v_int64;
  const int64_t wanted = args[1].v_int64;
  for (int32_t i = 0; i < RT3_MAX_ARGS; ++i) shifts[i] = wanted >> i & 1 ? random_bits(&state) % LINES * LINE : 0;
  return none(result);
}

#define ADDS 1000000
#define TRIES 3

/* clock() -> Hz that this core runs at: each of a chain of additions takes a cycle. */
ENTRY(clock) {
  (void)self, (void)args, (void)count;
  double best = 0.0;
  for (int32_t t = 0; t < TRIES; ++t) {
    struct timespec from, to;
    uintptr_t sum = 0;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
    for (int32_t i = 0; i < ADDS; i += 4) {
      __asm__ volatile("" : "+r"(sum));
      sum += (uintptr_t)count + 1;
      __asm__ volatile("" : "+r"(sum));
      sum += (uintptr_t)count + 1;
      __asm__ volatile("" : "+r"(sum));
      sum += (uintptr_t)count + 1;
      __asm__ volatile("" : "+r"(sum));
      sum += (uintptr_t)count + 1;
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
    const double seconds = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) * 1e-9;
    if (ADDS / seconds > best) best = ADDS / seconds;
  }
  result->type_index = kTVMFFIFloat;
  result->zero_padding = 0;
  result->v_float64 = best;
  return 0;
}

ENTRY(begin) {
  (void)self, (void)args, (void)count;
  if (pool == NULL) pool = rt3_pool_open(RT3_MAX_THREADS);
  if (pool == NULL) return -1;
  rt3_pool_begin(pool);
  return none(result);
}

ENTRY(end) {
  (void)self, (void)args, (void)count;
  rt3_pool_end(pool);
  return none(result);
}

static int run(const rt3_kernel *kernels, int32_t number, const TVMFFIAny *args, int32_t count, TVMFFIAny *result) {
  void *pointers[RT3_MAX_ARGS];
  if (count > RT3_MAX_ARGS) return -1;
  for (int32_t i = 0; i < count; ++i) {
    const DLTensor *tensor = tensor_of(&args[i]);
    if (tensor == NULL) return -1;
    pointers[i] = (char *)tensor->data + tensor->byte_offset + shifts[i];
  }
  for (int32_t i = 0; i < number; ++i) rt3_pool_run(pool, &kernels[i], pointers);
  return none(result);
}

/* Seconds of a call in which this thread was at work: what else runs here only takes time in between. Of several
 * threads that is not known, so of those it is what a clock on the wall says. A library that only tells the clock has
 * no plan that asks. */
__attribute__((unused)) static double seconds_of(const rt3_kernel *kernels, int32_t number, const TVMFFIAny *args,
                                                 int32_t count, int64_t calls, TVMFFIAny *result) {
  const clockid_t clock = RT3_MAX_THREADS > 1 ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID;
  struct timespec from, to;
  clock_gettime(clock, &from);
  for (int64_t i = 0; i < calls; ++i)
    if (run(kernels, number, args, count, result) != 0) return -1.0;
  clock_gettime(clock, &to);
  return ((double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) * 1e-9) / (double)calls;
}

/* A plan: its kernels one after the other on the same arrays. seconds_NAME(arrays, calls) -> seconds of one of so many
 * calls. */
#define PLAN(name, ...)                                                                                             \
  static const rt3_kernel kernels_of_##name[] = {__VA_ARGS__};                                                      \
  ENTRY(seconds_##name) {                                                                                           \
    (void)self;                                                                                                     \
    const int32_t number = sizeof kernels_of_##name / sizeof *kernels_of_##name;                                    \
    if (count < 1 || args[count - 1].v_int64 < 1) return -1;                                                        \
    const double seconds = seconds_of(kernels_of_##name, number, args, count - 1, args[count - 1].v_int64, result); \
    if (seconds < 0.0) return -1;                                                                                   \
    result->type_index = kTVMFFIFloat;                                                                              \
    result->zero_padding = 0;                                                                                       \
    result->v_float64 = seconds;                                                                                    \
    return 0;                                                                                                       \
  }
