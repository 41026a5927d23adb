/* What the generated tables of a bundle look like to the runtime. */
#ifndef RT3_INTERNAL_H_
#define RT3_INTERNAL_H_

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "rt3.h"

#define RT3_MAX_ARGS 16

/* Where an argument of a kernel lies: in the workspace, or in the bundle's weights. */
typedef struct {
  uint32_t in_weights;
  uint32_t unused;
  uint64_t offset;
} rt3_place;

/* One call of a kernel: `run` unpacks `args` for the kernel's own C signature. */
typedef struct {
  void (*run)(void *const *args);
  const rt3_place *args;
  int32_t arg_count;
  int32_t kernel; /* index into the metadata's list of kernels */
} rt3_step;

/* The compiled code of one level at one length. */
typedef struct {
  int32_t level;
  int64_t length;
  const rt3_step *steps;
  int32_t step_count;
  const uint64_t *inputs;  /* offsets in the workspace, int64 (batch, length) each */
  const uint64_t *outputs; /* offsets in the workspace */
} rt3_variant;

typedef struct {
  rt3_tensor_info info;
  int64_t fill; /* value of padding, and of the whole input when it is left out */
  bool mask;    /* 1 for real tokens when it is left out */
} rt3_input_spec;

typedef struct {
  int32_t level_count, variant_count, input_count, output_count;
  int64_t batch, max_length;
  uint64_t workspace_bytes;
  const rt3_level_info *levels; /* descending frequency, densest first */
  const rt3_variant *variants;  /* by level, then by ascending length */
  const rt3_input_spec *inputs;
  const rt3_tensor_info *outputs;
} rt3_bundle;

extern const rt3_bundle rt3_bundle_tables;
extern const unsigned char rt3_weights[];
extern const char rt3_metadata_json[];

/* State of `auto`; touched only by the thread that holds the handle's busy flag. */
typedef struct {
  char path[256];
  rt3_auto_options options;
  double last_poll, last_rise;
  int32_t missed; /* deadlines missed in a row */
  int32_t extra;  /* levels taken below what the frequency alone asks for */
} rt3_governor;

struct rt3_model {
  atomic_int level;
  atomic_bool follow; /* auto */
  atomic_flag busy;
  unsigned char *workspace;
  rt3_governor governor;
};

/* Records the message that rt3_last_error returns, and returns `status`. */
rt3_status rt3_fail(rt3_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The densest level whose frequency is at most hz; the sparsest, and below = true, where there is none. */
int32_t rt3_level_for(double hz, bool *below);
double rt3_now(void);

rt3_status rt3_governor_start(rt3_governor *governor, const rt3_auto_options *options, int32_t *level);
int32_t rt3_governor_choose(rt3_governor *governor, int32_t current, double now);
void rt3_governor_finish(rt3_governor *governor, int32_t level, double seconds);

#endif /* RT3_INTERNAL_H_ */
