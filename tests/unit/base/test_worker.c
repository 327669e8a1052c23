/* Jobs that wait for files which do not answer. */
#include "daemon/base/core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define WORKERS 2u
#define JOBS    12u

struct job {
    struct work work;
    struct fixture *fixture;
    bool done;
    int *pipe; /* what it reads from */
};

struct fixture {
    uv_loop_t loop;
    struct core core;
    int pipes[2][2];
    struct job jobs[JOBS], other;
    unsigned n_done, n_changes;
};

static void changed(void *context)
{
    ((struct fixture *)context)->n_changes++;
}

static int make(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    if (!fixture || uv_loop_init(&fixture->loop) < 0 || core_init(&fixture->core, &fixture->loop) < 0 ||
        workers_begin(fixture->core.queue, WORKERS) < 0 || pipe(fixture->pipes[0]) < 0 || pipe(fixture->pipes[1]) < 0)
        return -1;
    workers_watch(fixture->core.queue, changed, fixture);
    *state = fixture;
    return 0;
}

static int unmake(void **state)
{
    struct fixture *fixture = *state;
    core_close(&fixture->core);
    uv_run(&fixture->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&fixture->loop), 0);
    for (size_t i = 0; i < 4; i++)
        close(fixture->pipes[i / 2][i % 2]);
    free(fixture);
    return 0;
}

static void run(struct work *work)
{
    struct job *job = work->data;
    char byte;
    worker_file_begin();
    if (job->pipe)
        (void)!read(job->pipe[0], &byte, 1);
    worker_file_end();
}

static void done(struct work *work)
{
    struct job *job = work->data;
    job->done = true;
    job->fixture->n_done++;
}

static void queue(struct fixture *fixture, struct job *job, int *pipe, uid_t uid, uint64_t ino)
{
    const struct work_reads reads = {.uid = uid, .dev = 1, .ino = ino};
    job->fixture = fixture;
    job->pipe = pipe;
    worker_queue_reading(fixture->core.queue, &job->work, &reads, job, run, done);
}

static void run_until(struct fixture *fixture, const bool *flag)
{
    while (!*flag)
        uv_run(&fixture->loop, UV_RUN_ONCE);
}

static void answer(const int *pipe, size_t n)
{
    for (size_t i = 0; i < n; i++)
        assert_int_equal(write(pipe[1], "x", 1), 1);
}

static void run_until_all(struct fixture *fixture, unsigned n)
{
    while (fixture->n_done < n)
        uv_run(&fixture->loop, UV_RUN_ONCE);
}

/* All workers wait for one file. Another job of its user, of another file, goes on; those of the same file wait. */
static void test_one_file(void **state)
{
    struct fixture *fixture = *state;
    for (size_t i = 0; i < 5; i++)
        queue(fixture, &fixture->jobs[i], fixture->pipes[0], 1, 1);
    queue(fixture, &fixture->other, NULL, 1, 2);
    run_until(fixture, &fixture->other.done);
    while (!workers_are_stuck(fixture->core.queue)) /* until those that were not begun have come back */
        uv_run(&fixture->loop, UV_RUN_ONCE);
    assert_int_equal(workers_hanging(fixture->core.queue), WORKERS);
    assert_int_equal(workers_hanging_of(fixture->core.queue, 1), WORKERS);
    assert_int_equal(workers_hanging_of(fixture->core.queue, 2), 0);
    assert_true(fixture->n_changes > 0);
    assert_true(workers_keep_waiting(fixture->core.queue, &(struct work_reads){.uid = 2, .dev = 1, .ino = 1}));
    assert_false(workers_keep_waiting(fixture->core.queue, &(struct work_reads){.uid = 1, .dev = 1, .ino = 2}));
    answer(fixture->pipes[0], 5);
    run_until_all(fixture, 6);
    assert_int_equal(workers_hanging(fixture->core.queue), 0);
    assert_false(workers_are_stuck(fixture->core.queue));
}

/* Each job of a user hangs, and each reads another file: at most two threads for each worker wait. */
static void test_one_user(void **state)
{
    struct fixture *fixture = *state;
    for (size_t i = 0; i < JOBS; i++)
        queue(fixture, &fixture->jobs[i], fixture->pipes[0], 1, 1 + i);
    while (workers_hanging(fixture->core.queue) <= WORKERS)
        uv_run(&fixture->loop, UV_RUN_ONCE);
    queue(fixture, &fixture->other, NULL, 2, 100);
    run_until(fixture, &fixture->other.done);
    assert_true(workers_hanging(fixture->core.queue) <= 2 * WORKERS);
    assert_true(workers_keep_waiting(fixture->core.queue, &(struct work_reads){.uid = 1, .dev = 1, .ino = 200}));
    answer(fixture->pipes[0], JOBS);
    run_until_all(fixture, JOBS + 1);
    assert_int_equal(workers_hanging(fixture->core.queue), 0);
}

/* What the threads that took their places leave behind is as before, again and again. */
static void test_again(void **state)
{
    struct fixture *fixture = *state;
    for (unsigned round = 0; round < 2; round++) {
        fixture->other.done = false;
        for (size_t i = 0; i < WORKERS; i++)
            queue(fixture, &fixture->jobs[i], fixture->pipes[round], 1, 1);
        queue(fixture, &fixture->other, NULL, 2, 2);
        run_until(fixture, &fixture->other.done);
        answer(fixture->pipes[round], WORKERS);
        run_until_all(fixture, (round + 1) * (WORKERS + 1));
    }
    for (size_t i = 0; i < JOBS; i++)
        queue(fixture, &fixture->jobs[i], NULL, 1, 1);
    run_until_all(fixture, 2 * (WORKERS + 1) + JOBS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_one_file, make, unmake),
        cmocka_unit_test_setup_teardown(test_one_user, make, unmake),
        cmocka_unit_test_setup_teardown(test_again, make, unmake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
