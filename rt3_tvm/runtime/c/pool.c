/* Threads of one handle: they share the tasks of every step of an inference, cut into as many equal shares as threads.
 *
 * Between inferences the workers sleep; within one they spin, because steps are too short to be woken for: tens of
 * microseconds to some milliseconds. The caller's thread works too, so N threads are N - 1 workers. A share goes to
 * whoever asks first: the caller does what a worker that sleeps, or that the system has put aside, has not begun.
 */
#define _POSIX_C_SOURCE 200809L

#include <stdlib.h>
#include <string.h>

#include "rt3_internal.h"

#if RT3_MAX_THREADS > 1

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

/* Spins before a waiting thread offers its core to others: on a loaded machine the one it waits for may need it. */
#define RT3_SPINS 2000

struct rt3_pool {
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  uint64_t runs; /* inferences begun; guarded by mutex */
  bool stop;     /* guarded by mutex */
  atomic_bool running;
  atomic_uint_least64_t
      next;                 /* number of the published step << 32 | its next share; what follows belongs to that step */
  atomic_int finished;      /* its shares that are done */
  const rt3_kernel *kernel; /* of the published step */
  void *const *args;
  pid_t process; /* that has the workers */
  int32_t workers;
  pthread_t threads[RT3_MAX_THREADS - 1];
};

static void pause_spin(unsigned *spins) {
  if (++*spins % RT3_SPINS == 0) {
    sched_yield();
    return;
  }
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield");
#endif
}

/* Takes a share of the published step and does it; false when none is left. A step is not replaced before all of its
 * shares are done, so who holds one may read the step. */
static bool do_share(rt3_pool *pool) {
  const int64_t parts = pool->workers + 1;
  uint_least64_t next = atomic_load_explicit(&pool->next, memory_order_acquire);
  do {
    if ((int64_t)(next & UINT32_MAX) >= parts) return false;
  } while (
      !atomic_compare_exchange_weak_explicit(&pool->next, &next, next + 1, memory_order_acq_rel, memory_order_acquire));
  const int64_t share = (int64_t)(next & UINT32_MAX), tasks = pool->kernel->tasks;
  const int32_t first = (int32_t)(tasks * share / parts), last = (int32_t)(tasks * (share + 1) / parts);
  if (first < last) pool->kernel->run(pool->args, first, last);
  atomic_fetch_add_explicit(&pool->finished, 1, memory_order_release);
  return true;
}

static void *worker_main(void *argument) {
  rt3_pool *pool = argument;
  uint64_t seen = 0;
  for (;;) {
    pthread_mutex_lock(&pool->mutex);
    while (!pool->stop && pool->runs == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
    const bool stop = pool->stop;
    seen = pool->runs;
    pthread_mutex_unlock(&pool->mutex);
    if (stop) return NULL;
    unsigned spins = 0;
    while (atomic_load_explicit(&pool->running, memory_order_acquire))
      if (!do_share(pool)) pause_spin(&spins);
  }
}

void rt3_pool_close(rt3_pool *pool) {
  if (pool == NULL) return;
  if (!rt3_pool_is_ours(pool)) { /* its mutex may be held by a thread that is not there */
    free(pool);
    return;
  }
  pthread_mutex_lock(&pool->mutex);
  pool->stop = true;
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->mutex);
  for (int32_t i = 0; i < pool->workers; ++i) pthread_join(pool->threads[i], NULL);
  pthread_cond_destroy(&pool->wake);
  pthread_mutex_destroy(&pool->mutex);
  free(pool);
}

rt3_pool *rt3_pool_open(int32_t threads) {
  rt3_pool *pool = calloc(1, sizeof *pool);
  if (pool == NULL) return NULL;
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->wake, NULL);
  atomic_init(&pool->running, false);
  atomic_init(&pool->next, UINT32_MAX); /* no step, no share */
  atomic_init(&pool->finished, 0);
  pool->process = getpid();
  pool->workers = threads - 1;
  for (int32_t i = 0; i < pool->workers; ++i) {
    if (pthread_create(&pool->threads[i], NULL, worker_main, pool) != 0) {
      pool->workers = i; /* those that run are stopped */
      rt3_pool_close(pool);
      return NULL;
    }
  }
  return pool;
}

int32_t rt3_pool_threads(const rt3_pool *pool) { return pool == NULL ? 1 : pool->workers + 1; }

bool rt3_pool_is_ours(const rt3_pool *pool) { return pool == NULL || pool->process == getpid(); }

void rt3_pool_begin(rt3_pool *pool) {
  if (pool == NULL) return;
  atomic_store_explicit(&pool->running, true, memory_order_release);
  pthread_mutex_lock(&pool->mutex);
  ++pool->runs;
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->mutex);
}

void rt3_pool_end(rt3_pool *pool) {
  if (pool != NULL) atomic_store_explicit(&pool->running, false, memory_order_release);
}

void rt3_pool_run(rt3_pool *pool, const rt3_kernel *kernel, void *const *args) {
  if (pool == NULL || kernel->tasks < 2) {
    kernel->run(args, 0, kernel->tasks);
    return;
  }
  pool->kernel = kernel;
  pool->args = args;
  atomic_store_explicit(&pool->finished, 0, memory_order_relaxed);
  const uint_least64_t number = (atomic_load_explicit(&pool->next, memory_order_relaxed) >> 32) + 1;
  atomic_store_explicit(&pool->next, number << 32, memory_order_release);
  while (do_share(pool)) continue;
  unsigned spins = 0;
  while (atomic_load_explicit(&pool->finished, memory_order_acquire) != pool->workers + 1) pause_spin(&spins);
}

int32_t rt3_online_cores(void) {
  const long cores = sysconf(_SC_NPROCESSORS_ONLN);
  return cores < 1 ? 1 : cores > RT3_MAX_THREADS ? RT3_MAX_THREADS : (int32_t)cores;
}

#else /* one thread: nothing of pthreads is linked */

struct rt3_pool {
  int unused;
};

void rt3_pool_close(rt3_pool *pool) { free(pool); }

rt3_pool *rt3_pool_open(int32_t threads) {
  (void)threads;
  return calloc(1, sizeof(rt3_pool));
}

int32_t rt3_pool_threads(const rt3_pool *pool) {
  (void)pool;
  return 1;
}

bool rt3_pool_is_ours(const rt3_pool *pool) {
  (void)pool;
  return true;
}

void rt3_pool_begin(rt3_pool *pool) { (void)pool; }

void rt3_pool_end(rt3_pool *pool) { (void)pool; }

void rt3_pool_run(rt3_pool *pool, const rt3_kernel *kernel, void *const *args) {
  (void)pool;
  kernel->run(args, 0, kernel->tasks);
}

int32_t rt3_online_cores(void) { return 1; }

#endif
