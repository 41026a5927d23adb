/* What one core can do, best of 10, as JSON in GFLOP/s of multiply-adds on whole vectors of float32 in L1:
 *   peak: 12 independent chains of multiply-adds on registers;
 *   loaded: each takes one operand from memory, and every fourth comes with a broadcast and an index, as a kept weight
 * of an element pattern (V=1) does for four vectors of tokens;
 *   clock: a chain of additions, a cycle each, in GHz; stream: reading memory that no cache holds, in GB/s. */
#define _POSIX_C_SOURCE 200809L

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define CHAINS 12
#define TILE 12
#define STEPS 5000000L
#define TRIES 10
#define ADDITIONS 20000000L
#define STREAM_BYTES (256L << 20)

typedef float vector __attribute__((vector_size(4 * LANES)));

static vector x[64];
static float weights[3];
static uint16_t offsets[3];

/* Of what this thread was at work: what else runs here takes time in between. */
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double gflops(double seconds) { return 2.0 * CHAINS * LANES * (double)STEPS / seconds / 1e9; }

/* Separate variables, not an array: they must stay in registers. */
#define ALL(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define DECLARE(i) vector a##i = (vector){0} + (float)i;
#define MULTIPLY(i) a##i = a##i * b + c;
/* One kept weight of four vectors of tokens, in tiles TILE vectors apart. */
#define WEIGHT(k, i, j, l, m)            \
  {                                      \
    const vector *from = x + offsets[k]; \
    const float weight = weights[k];     \
    a##i += from[0] * weight;            \
    a##j += from[TILE] * weight;         \
    a##l += from[2 * TILE] * weight;     \
    a##m += from[3 * TILE] * weight;     \
  }
#define ADD(i) sum += a##i[0];

static float run_peak(void) {
  const vector b = (vector){0} + 0.999f, c = (vector){0} + 1e-6f;
  float sum = 0;
  ALL(DECLARE)
  for (long s = 0; s < STEPS; ++s) {
    ALL(MULTIPLY)
  }
  ALL(ADD)
  return sum;
}

static float run_loaded(void) {
  float sum = 0;
  ALL(DECLARE)
  for (long s = 0; s < STEPS; ++s) {
    __asm__ volatile("" : "+m"(x), "+m"(weights), "+m"(offsets)); /* they must be read again */
    WEIGHT(0, 0, 1, 2, 3)
    WEIGHT(1, 4, 5, 6, 7)
    WEIGHT(2, 8, 9, 10, 11)
  }
  ALL(ADD)
  return sum;
}

static unsigned long run_clock(void) {
  unsigned long sum = 0, step = 3;
  for (long s = 0; s < ADDITIONS; s += 10) {
    /* The compiler may not fold these: each waits for the one before. */
#define CHAIN(i) \
  sum += step;   \
  __asm__ volatile("" : "+r"(sum), "+r"(step));
    CHAIN(0) CHAIN(1) CHAIN(2) CHAIN(3) CHAIN(4) CHAIN(5) CHAIN(6) CHAIN(7) CHAIN(8) CHAIN(9)
  }
  return sum;
}

static float run_stream(const vector *data) {
  vector a = {0}, b = {0}, c = {0}, d = {0};
  for (size_t i = 0; i < STREAM_BYTES / sizeof(vector); i += 4) {
    a += data[i];
    b += data[i + 1];
    c += data[i + 2];
    d += data[i + 3];
  }
  return a[0] + b[0] + c[0] + d[0];
}

int main(void) {
  vector *data = aligned_alloc(64, STREAM_BYTES);
  if (data == NULL) return 1;
  for (size_t i = 0; i < STREAM_BYTES / sizeof(vector); ++i) data[i] = (vector){0} + 1e-6f;
  double clock = 0, stream = 0;
  double peak = 0, loaded = 0;
  float check = 0;
  for (int attempt = 0; attempt < TRIES; ++attempt) {
    const double start = now();
    check += run_peak();
    const double middle = now();
    check += run_loaded();
    const double end = now();
    unsigned long count = run_clock();
    const double counted = now();
    check += run_stream(data) + (float)(count & 1);
    const double read = now();
    if (ADDITIONS / (counted - end) / 1e9 > clock) clock = ADDITIONS / (counted - end) / 1e9;
    if (STREAM_BYTES / (read - counted) / 1e9 > stream) stream = STREAM_BYTES / (read - counted) / 1e9;
    if (gflops(middle - start) > peak) peak = gflops(middle - start);
    if (gflops(end - middle) > loaded) loaded = gflops(end - middle);
  }
  printf(
      "{\"peak_gflops\": %.1f, \"loaded_gflops\": %.1f, \"clock_ghz\": %.3f, \"stream_gbytes\": %.1f, \"lanes\": %d, "
      "\"check\": %g}\n",
      peak, loaded, clock, stream, LANES, (double)check);
  free(data);
  return 0;
}
