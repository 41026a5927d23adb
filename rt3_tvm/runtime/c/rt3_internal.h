/* What the generated tables of a bundle look like to the runtime. */
#ifndef RT3_INTERNAL_H_
#define RT3_INTERNAL_H_

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "rt3.h"

/* Most pointers that a kernel takes; codegen sets it, and asserts it in the tables. */
#ifndef RT3_MAX_ARGS
#define RT3_MAX_ARGS 1
#endif

/* Most threads of a handle; `rt3 compile --threads` sets it. */
#ifndef RT3_MAX_THREADS
#define RT3_MAX_THREADS 1
#endif

/* What an argument of a kernel can point into. */
typedef enum {
  RT3_WORKSPACE, /* of the handle */
  RT3_WEIGHTS,   /* of the bundle, read only */
  RT3_SEGMENTS
} rt3_segment;

/* Where an argument of a kernel lies. */
typedef struct {
  rt3_segment segment;
  uint64_t offset;
} rt3_place;

/* A kernel: `run` unpacks `arg_count` pointers for its own C signature and does the tasks [first, last) of `tasks`,
 * which threads can share. Kernels are in the order of the metadata's list. */
typedef struct {
  void (*run)(void *const *args, int32_t first, int32_t last);
  int32_t arg_count;
  int32_t tasks;
} rt3_kernel;

/* One call of a kernel, by its index. */
typedef struct {
  int32_t kernel;
  const rt3_place *args;
} rt3_step;

/* The compiled code of one level at one length. */
typedef struct {
  int32_t level;
  int64_t length;
  const rt3_step *steps;
  int32_t step_count;
  const uint64_t *inputs;  /* offsets in the workspace, int64 (batch, length) or float32 */
  const uint64_t *outputs; /* offsets in the workspace */
} rt3_variant;

typedef struct {
  rt3_tensor_info info;
  int64_t fill; /* value of padding, and of the whole input when it is left out */
  bool mask;    /* 1 for real tokens when it is left out */
} rt3_input_spec;

/* Level of the weights that levels share. */
#define RT3_SHARED (-1)

/* A part of the weights that begins on a page of its own: what one level reads and no other does, or RT3_SHARED. */
typedef struct {
  int32_t level;
  uint64_t offset, bytes;
} rt3_weight_section;

/* Where a CPU says what it has. */
typedef enum {
  RT3_CPUID_1_ECX,
  RT3_CPUID_7_EBX,
  RT3_CPUID_7_ECX,
  RT3_CPUID_7_EDX,
  RT3_CPUID_7_1_EAX,
  RT3_CPUID_7_1_EDX,
  RT3_CPUID_EXTENDED_ECX,
  RT3_XCR0,
  RT3_HWCAP,
  RT3_HWCAP2
} rt3_cpu_word;

/* A feature that kernels may use. Rows of one name follow each other: all of their bits must be set. */
typedef struct {
  const char *name;
  rt3_cpu_word word;
  int32_t bit;
} rt3_cpu_feature;

typedef struct {
  int32_t level_count, variant_count, input_count, output_count, section_count;
  int64_t batch, max_length;
  int32_t internal_count; /* inputs behind the others that no caller can give */
  bool exact_lengths;     /* outputs depend on padding: only lengths that were compiled are taken */
  uint64_t workspace_bytes;
  const rt3_level_info *levels; /* descending frequency, densest first */
  const rt3_kernel *kernels;
  const rt3_variant *variants; /* by level, then by ascending length */
  const rt3_input_spec *inputs;
  const rt3_tensor_info *outputs;
  const rt3_weight_section *sections; /* in order: RT3_SHARED, then level by level */
  const rt3_cpu_feature *features;    /* up to a row without a name */
} rt3_bundle;

#define RT3_MAX_SECTIONS 64

/* A section of the file; see runtime/checksums.py, which writes the table when the bundle is linked. */
typedef struct {
  char name[24];
  uint64_t address, offset, size; /* address: as linked, like that of the table */
  uint32_t crc;
  uint32_t same_in_memory; /* the loader writes nothing into it */
} rt3_checksum;

typedef struct {
  uint32_t crc; /* of all that follows, up to the last row */
  uint32_t count;
  uint64_t address;
  rt3_checksum rows[RT3_MAX_SECTIONS];
} rt3_checksum_table;

_Static_assert(sizeof(rt3_checksum) == 56 && offsetof(rt3_checksum_table, rows) == 16, "layout of the checksums");

extern const rt3_checksum_table rt3_checksums;
extern const rt3_bundle rt3_bundle_tables;
extern const unsigned char rt3_weights[];
extern const char rt3_metadata_json[];

/* Levels by descending frequency, densest first. */
typedef struct {
  const rt3_level_info *levels;
  int32_t count;
} rt3_level_table;

/* cpufreq counts in kHz and drops the rest: a clock is taken for the highest that it may be. */
#define RT3_CLOCK_STEP_HZ 1e3

/* State of `auto`; touched only by the thread that holds the handle's busy flag. */
typedef struct {
  rt3_level_table table;
  double dwell_s, poll_s, hysteresis; /* of rt3_auto_options */
  double last_poll, last_rise;
  double high_since; /* since when each clock that was read allowed a denser level than the current one */
  int32_t missed;    /* deadlines missed in a row */
  int32_t extra;     /* levels taken below what the frequency alone asks for */
} rt3_governor;

typedef struct rt3_pool rt3_pool;

/* A pool of `threads` threads, the caller's included; NULL when they cannot be had. NULL is also a pool of one. */
rt3_pool *rt3_pool_open(int32_t threads);
/* Ends the workers; those of a process that was forked are not there, and are forgotten. */
void rt3_pool_close(rt3_pool *pool);
int32_t rt3_pool_threads(const rt3_pool *pool);
/* Whether the pool was opened by this process: a child that was forked has no workers. */
bool rt3_pool_is_ours(const rt3_pool *pool);
/* Around the steps of one inference: workers are awake in between. */
void rt3_pool_begin(rt3_pool *pool);
void rt3_pool_end(rt3_pool *pool);
/* Runs all tasks of a kernel and returns when they are done. */
void rt3_pool_run(rt3_pool *pool, const rt3_kernel *kernel, void *const *args);
/* Cores that are online, at most RT3_MAX_THREADS. */
int32_t rt3_online_cores(void);

#define RT3_FOLLOW (1 << 30)

struct rt3_model {
  const rt3_bundle *bundle;
  /* The level, and RT3_FOLLOW while `auto` chooses it: one word, so that neither outlives the other. */
  atomic_int choice;
  /* The process whose thread holds the handle; 0: none. A fork copies it, but not the thread. */
  atomic_int busy;
  unsigned char *workspace;
  rt3_pool *pool;     /* NULL: one thread */
  atomic_int threads; /* wanted; the pool is made to match by the next run */
  rt3_governor governor;
  char clock_path[256]; /* the file that `auto` reads */
};

/* Records the message that rt3_last_error returns, and returns `status`. */
rt3_status rt3_fail(rt3_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
double rt3_now(void);

/* The tables of a handle; of NULL those of this library. */
const rt3_bundle *rt3_bundle_of(const rt3_model *model);
/* Takes the handle for this thread; false when another one has it. One of a process that was forked does not count: it
 * is not in this process and will never give the handle back. */
bool rt3_take_handle(rt3_model *model);
void rt3_release_handle(rt3_model *model);
/* Makes the pool match the threads that are wanted. */
rt3_status rt3_match_pool(rt3_model *model);
/* Fails when this CPU lacks a feature of a table that ends with a row without a name. */
rt3_status rt3_check_cpu(const rt3_cpu_feature *features);

/* The tensors of one call. */
typedef struct {
  const rt3_tensor *inputs;
  int32_t input_count;
  rt3_tensor *outputs;
  int32_t output_count;
} rt3_tensors;

/* Batch and length of one call. */
typedef struct {
  int64_t batch, length;
} rt3_extent;

/* Checks all tensors of a call, shapes its outputs, and says how large the call is. */
rt3_status rt3_check_tensors(const rt3_bundle *bundle, const rt3_tensors *tensors, rt3_extent *extent);
/* The code of a level for the shortest compiled length that fits. */
const rt3_variant *rt3_find_variant(const rt3_bundle *bundle, int32_t level, int64_t length);
void rt3_copy_inputs(const rt3_bundle *bundle, const rt3_variant *variant, const rt3_tensors *tensors,
                     const rt3_extent *extent, unsigned char *workspace);
void rt3_copy_outputs(const rt3_bundle *bundle, const rt3_variant *variant, const rt3_tensors *tensors,
                      const unsigned char *workspace);

/* The level of a run that begins now. Under `auto` the governor chooses it, unless one is set by hand meanwhile. */
int32_t rt3_take_level(rt3_model *model, double now, bool *follow);
/* The densest level whose frequency is at most hz; the sparsest, and below = true, where there is none. */
int32_t rt3_level_for(rt3_level_table table, double hz, bool *below);

/* Begins at `now` with options that were checked; zeros take their defaults. */
void rt3_governor_start(rt3_governor *governor, const rt3_auto_options *options, rt3_level_table table, double now);
/* Whether it is time to read the clock again. */
bool rt3_governor_polls(const rt3_governor *governor, double now);
/* The level to take at `now`; hz is the clock if it was read, else 0. */
int32_t rt3_governor_choose(rt3_governor *governor, int32_t current, double hz, double now);
/* Tells how long an inference took. */
void rt3_governor_finish(rt3_governor *governor, int32_t level, double seconds);

/* Writes the name of the file that tells the policy's clock, and reads it for the first time. */
rt3_status rt3_cpufreq_start(const rt3_auto_options *options, char *path, size_t size, double *hz);
/* Reads the clock in Hz; false, and errno, when it cannot. */
bool rt3_cpufreq_read(const char *path, double *hz);

#endif /* RT3_INTERNAL_H_ */
