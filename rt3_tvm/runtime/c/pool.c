/* Threads of one handle: they share the tasks of every step of an inference, each a fixed range of them.
 *
 * Between inferences the workers sleep; within one they spin, because steps are too short to be woken for: tens of
 * microseconds to some milliseconds. The caller's thread works too, so N threads are N - 1 workers.
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
  atomic_uint step_number; /* counts published steps; what is below belongs to the last of them */
  atomic_int pending;      /* workers that have not finished it */
  const rt3_step *step;
  void *const *args;
  int32_t workers;
  pthread_t threads[RT3_MAX_THREADS - 1];
};

typedef struct {
  rt3_pool *pool;
  int32_t index; /* 1 to workers; the caller is 0 */
} rt3_worker;

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

static void run_share(const rt3_pool *pool, const rt3_step *step, void *const *args, int32_t index) {
  const int64_t parts = pool->workers + 1;
  const int32_t first = (int32_t)(step->tasks * index / parts), last = (int32_t)(step->tasks * (index + 1) / parts);
  if (first < last) step->run(args, first, last);
}

/* Takes part in one inference; `done` is the number of the last step this worker has finished. */
static unsigned work(rt3_pool *pool, int32_t index, unsigned done) {
  unsigned spins = 0;
  for (;;) {
    const unsigned number = atomic_load_explicit(&pool->step_number, memory_order_acquire);
    if (number != done) {
      run_share(pool, pool->step, pool->args, index);
      done = number;
      atomic_fetch_sub_explicit(&pool->pending, 1, memory_order_release);
    } else if (!atomic_load_explicit(&pool->running, memory_order_acquire)) {
      return done;
    } else {
      pause_spin(&spins);
    }
  }
}

static void *worker_main(void *argument) {
  rt3_worker *worker = argument;
  rt3_pool *pool = worker->pool;
  const int32_t index = worker->index;
  free(worker);
  unsigned done = 0;
  uint64_t seen = 0;
  for (;;) {
    pthread_mutex_lock(&pool->mutex);
    while (!pool->stop && pool->runs == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
    const bool stop = pool->stop;
    seen = pool->runs;
    pthread_mutex_unlock(&pool->mutex);
    if (stop) return NULL;
    done = work(pool, index, done);
  }
}

static bool start_worker(rt3_pool *pool) {
  rt3_worker *worker = malloc(sizeof *worker);
  if (worker == NULL) return false;
  worker->pool = pool;
  worker->index = pool->workers + 1;
  if (pthread_create(&pool->threads[pool->workers], NULL, worker_main, worker) != 0) {
    free(worker);
    return false;
  }
  ++pool->workers;
  return true;
}

void rt3_pool_close(rt3_pool *pool) {
  if (pool == NULL) return;
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
  while (pool->workers < threads - 1) {
    if (!start_worker(pool)) {
      rt3_pool_close(pool);
      return NULL;
    }
  }
  return pool;
}

int32_t rt3_pool_threads(const rt3_pool *pool) { return pool == NULL ? 1 : pool->workers + 1; }

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

void rt3_pool_run(rt3_pool *pool, const rt3_step *step, void *const *args) {
  if (pool == NULL || step->tasks < 2) {
    step->run(args, 0, step->tasks);
    return;
  }
  pool->step = step;
  pool->args = args;
  atomic_store_explicit(&pool->pending, pool->workers, memory_order_relaxed);
  atomic_fetch_add_explicit(&pool->step_number, 1, memory_order_release);
  run_share(pool, step, args, 0);
  unsigned spins = 0;
  while (atomic_load_explicit(&pool->pending, memory_order_acquire) != 0) pause_spin(&spins);
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

void rt3_pool_begin(rt3_pool *pool) { (void)pool; }

void rt3_pool_end(rt3_pool *pool) { (void)pool; }

void rt3_pool_run(rt3_pool *pool, const rt3_step *step, void *const *args) {
  (void)pool;
  step->run(args, 0, step->tasks);
}

int32_t rt3_online_cores(void) { return 1; }

#endif
