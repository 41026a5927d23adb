/* Random calls of every function of rt3.h, good and bad, on several handles. Arguments: a seed, how many calls, and a
 * file of what the synthetic bundle looks up, float32 (level, token). What a call promises is checked after it; the
 * sanitizers that this is built with do the rest. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rt3.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

enum { HANDLES = 3, LEVELS = 3, VOCABULARY = 11, BATCH = 2, LONGEST = 9, ROOM = 64 };

static uint64_t state;
static float table[LEVELS][VOCABULARY];
static int failures = 0;

#define EXPECT(condition, ...)                                        \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      fprintf(stderr, __VA_ARGS__);                                   \
      fprintf(stderr, " (%s)\n", rt3_last_error());                   \
      ++failures;                                                     \
    }                                                                 \
  } while (0)

static uint32_t next(void) { /* xorshift64* */
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (uint32_t)((state * 0x2545F4914F6CDD1DULL) >> 32);
}

static int below(int limit) { return (int)(next() % (uint32_t)limit); }

/* A number that is mostly sound for [0, limit), and else near its ends or far away. */
static int64_t number(int64_t limit) {
  static const int64_t far[] = {-1, INT32_MIN, INT32_MAX, INT64_MIN, INT64_MAX, 1LL << 40, 0};
  const int kind = below(16);
  return kind < 12 ? (int64_t)(next() % (uint64_t)limit) : kind < 14 ? limit : far[below(COUNT(far))];
}

static double real(void) {
  static const double some[] = {1.4e9, 1.0e9, 0.8e9, 1.2e9, 1.0, 0.0, -1.0, 1e300, 5e-324, NAN, INFINITY, -INFINITY};
  return some[below(COUNT(some))];
}

/* A call's tensors, and whether they are as the header wants them. */
typedef struct {
  int64_t ids64[BATCH * LONGEST];
  int32_t ids32[BATCH * LONGEST];
  float values[ROOM];
  rt3_tensor in[2], out[2];
  int in_count, out_count;
  int sound;
} call;

static void make_input(call *c) {
  const int64_t batch = below(8) != 0 ? 1 + below(BATCH) : number(BATCH + 1);
  const int64_t length = below(8) != 0 ? 1 + below(LONGEST) : number(LONGEST + 1);
  c->sound = batch >= 1 && batch <= BATCH && length >= 1 && length <= LONGEST;
  const int bad = below(12) == 0;
  for (int i = 0; i < BATCH * LONGEST; ++i) {
    c->ids64[i] = bad ? number(VOCABULARY) : below(VOCABULARY);
    if (c->ids64[i] != (int32_t)c->ids64[i]) c->ids64[i] = -1; /* the same for both types */
    c->ids32[i] = (int32_t)c->ids64[i];
    if (c->sound && i < batch * length && (c->ids64[i] < 0 || c->ids64[i] >= VOCABULARY)) c->sound = 0;
  }
  const int wide = below(2);
  c->in[0] = (rt3_tensor){"input_ids", wide ? RT3_INT64 : RT3_INT32, 2, {batch, length, 0, 0}, NULL, 0};
  c->in[0].data = wide ? (void *)c->ids64 : (void *)c->ids32;
  c->in_count = 1;
  switch (below(24)) {
    case 0:
      c->in[0].name = NULL;
      c->sound = 0;
      break;
    case 1:
      c->in[0].name = "input";
      c->sound = 0;
      break;
    case 2:
      c->in[0].data = NULL;
      c->sound = 0;
      break;
    case 3:
      c->in[0].rank = (int32_t)number(5);
      c->sound = c->sound && c->in[0].rank == 2;
      break;
    case 4:
      c->in[0].dtype = RT3_FLOAT32;
      c->sound = 0;
      break;
    case 5:
      c->in_count = 0;
      c->sound = 0;
      break;
    case 6:
      c->in[1] = c->in[0];
      c->in_count = 2;
      break; /* the first of a name is taken */
    default:
      break;
  }
}

static void make_output(call *c) {
  for (int i = 0; i < ROOM; ++i) c->values[i] = 12345.0f;
  c->out[0] = (rt3_tensor){"sum", RT3_FLOAT32, 0, {0}, c->values, sizeof c->values};
  c->out_count = 1;
  switch (below(12)) {
    case 0:
      c->out[0].name = "sums";
      c->sound = 0;
      break;
    case 1:
      c->out[0].data = NULL;
      c->sound = 0;
      break;
    case 2:
      c->out[0].bytes = (size_t)below(4);
      c->sound = 0;
      break;
    case 3:
      c->out_count = 0;
      break;
    default:
      break;
  }
}

static void check_result(const call *c, int level) {
  const int count = (int)(c->in[0].shape[0] * c->in[0].shape[1]);
  for (int i = 0; i < ROOM; ++i) {
    const float want = c->out_count == 1 && i < count ? table[level][c->ids64[i]] : 12345.0f;
    EXPECT(c->values[i] == want, "value %d is %g, expected %g", i, (double)c->values[i], (double)want);
  }
  if (c->out_count == 1)
    EXPECT(c->out[0].rank == 2 && c->out[0].shape[0] == c->in[0].shape[0] && c->out[0].shape[1] == c->in[0].shape[1],
           "shape of the output");
}

static void run(rt3_model *model) {
  call c;
  make_input(&c);
  make_output(&c);
  double seconds[4];
  int32_t steps = below(4);
  const int profile = below(4) == 0, room = steps >= 1;
  const rt3_status status = profile ? rt3_profile(model, c.in, c.in_count, c.out, c.out_count, seconds, &steps)
                                    : rt3_run(model, c.in, c.in_count, c.out, c.out_count);
  if (model == NULL) c.sound = 0;
  if (!c.sound || (profile && !room)) {
    EXPECT(status == RT3_ERROR_ARGUMENT && rt3_last_error()[0] != 0, "status %d of a bad call", (int)status);
    return;
  }
  EXPECT(status == RT3_OK, "status %d of a good call", (int)status);
  if (status == RT3_OK) check_result(&c, rt3_current_level(model));
}

static void choose_level(rt3_model *model) {
  const int32_t level = (int32_t)number(LEVELS);
  const rt3_status status = rt3_set_level(model, level);
  const int good = model != NULL && level >= 0 && level < LEVELS;
  EXPECT(status == (good ? RT3_OK : RT3_ERROR_ARGUMENT), "level %d: status %d", (int)level, (int)status);
  if (good) EXPECT(rt3_current_level(model) == level, "level %d is %d", (int)level, (int)rt3_current_level(model));
}

static void choose_frequency(rt3_model *model) {
  const double hz = real();
  const rt3_status status = rt3_set_frequency(model, hz);
  const int good = model != NULL && hz > 0 && hz < INFINITY;
  const rt3_status want = !good ? RT3_ERROR_ARGUMENT : hz < 0.8e9 ? RT3_BELOW_RANGE : RT3_OK;
  EXPECT(status == want, "%g Hz: status %d", hz, (int)status);
}

static void follow_clock(rt3_model *model) {
  rt3_auto_options o = {"/nonexistent", below(4) == 0 ? (int32_t)number(4) : 0, real(), real(), real()};
  char name[512];
  memset(name, 'a', sizeof name);
  name[sizeof name - 1] = 0;
  if (below(4) == 0) o.sysfs_root = name;
  const rt3_status status = rt3_set_auto(model, below(16) == 0 ? NULL : &o);
  EXPECT(status <= 0 && status >= RT3_ERROR_SYSTEM, "status %d", (int)status);
}

static void ask(rt3_model *model) {
  rt3_level_info level;
  rt3_tensor_info tensor;
  const int32_t index = (int32_t)number(LEVELS);
  const int good = model != NULL && index >= 0;
  EXPECT((rt3_level(model, index, &level) == RT3_OK) == (good && index < LEVELS), "level %d", (int)index);
  EXPECT((rt3_input(model, index, &tensor) == RT3_OK) == (good && index < 1), "input %d", (int)index);
  EXPECT((rt3_output(model, index, &tensor) == RT3_OK) == (good && index < 1), "output %d", (int)index);
  EXPECT(rt3_level(model, 0, NULL) < 0 && rt3_input(model, 0, NULL) < 0 && rt3_output(model, 0, NULL) < 0, "NULL");
  EXPECT(rt3_level_count(model) == LEVELS && rt3_max_batch(model) == BATCH && rt3_max_length(model) == LONGEST,
         "sizes");
  EXPECT(rt3_metadata()[0] == '{', "metadata");
}

static void choose_threads(rt3_model *model) {
  const int32_t threads = (int32_t)number(4);
  const int good = model != NULL && threads >= 1 && threads <= rt3_max_threads(model);
  EXPECT(rt3_set_threads(model, threads) == (good ? RT3_OK : RT3_ERROR_ARGUMENT), "%d threads", (int)threads);
  if (good) EXPECT(rt3_threads(model) == threads, "%d threads", (int)threads);
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  state = strtoull(argv[1], NULL, 10) * 2 + 1;
  FILE *file = fopen(argv[3], "rb");
  if (file == NULL || fread(table, sizeof table, 1, file) != 1) return 2;
  fclose(file);
  rt3_model *models[HANDLES + 1] = {NULL}; /* the last stays NULL */
  for (long calls = strtol(argv[2], NULL, 10); calls > 0 && failures == 0; --calls) {
    const int which = below(HANDLES + 1);
    rt3_model *model = models[which];
    if (model == NULL && which < HANDLES) {
      EXPECT(rt3_open(&models[which]) == RT3_OK, "rt3_open");
      continue;
    }
    static void (*const actions[])(rt3_model *) = {run, run,         run, run, choose_level, choose_frequency,
                                                   ask, follow_clock};
    const int action = below(200);
    if (action == 0) {
      rt3_close(model);
      models[which] = NULL;
    } else if (action < 4) {
      choose_threads(model);
    } else if (action == 4) {
      EXPECT(rt3_open(NULL) == RT3_ERROR_ARGUMENT && rt3_check() == RT3_OK, "rt3_check");
    } else {
      actions[below(COUNT(actions))](model);
    }
  }
  for (int i = 0; i < HANDLES; ++i) rt3_close(models[i]);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
