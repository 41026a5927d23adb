/* The peak of fused multiply-adds on one core: 12 independent chains of whole vectors of float32, best of 10. Prints
 * JSON in GFLOP/s. */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <time.h>

#define CHAINS 12
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define STEPS 20000000L
#define TRIES 10

typedef float vector __attribute__((vector_size(4 * LANES)));

int main(void) {
  vector a[CHAINS], b, c;
  for (int i = 0; i < CHAINS; ++i) a[i] = (vector){0} + (float)i;
  b = (vector){0} + 0.999f;
  c = (vector){0} + 1e-6f;
  double best = 0;
  for (int attempt = 0; attempt < TRIES; ++attempt) {
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long s = 0; s < STEPS; ++s) {
#pragma GCC unroll 12
      for (int i = 0; i < CHAINS; ++i) a[i] = a[i] * b + c;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double seconds = (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
    const double gflops = 2.0 * CHAINS * LANES * (double)STEPS / seconds / 1e9;
    if (gflops > best) best = gflops;
  }
  float sum = 0;
  for (int i = 0; i < CHAINS; ++i) sum += a[i][0];
  printf("{\"peak_gflops\": %.1f, \"lanes\": %d, \"check\": %g}\n", best, LANES, (double)sum);
  return 0;
}
