/* Shares the loop's time between users. Whoever has something to do on the loop for a user waits for a turn; the next
 * turn goes to the user who was served least, measured by the time that the turns took. So a user's share does not grow
 * with the number of connections, and a user who asks seldom is served at once.
 *
 * This is start-time fair queueing with time as the cost (Goyal, Vin, Cheng 1996): a user who comes back after a pause
 * starts at the time of service that the others have reached, and cannot save time up.
 *
 * Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>
#include <uv.h>

/* Turns are given for so many nanoseconds; then the loop looks at its other work before it goes on. */
#define TURNS_NS 1000000u

struct turns;
struct turn_user;

/* What waits for a turn: a part of a larger struct. `run` is called when it has its turn; it may wait for the next one,
 * and may end it. */
struct turn {
    TAILQ_ENTRY(turn) link;
    struct turn_user *user; /* NULL: it was ended, or not begun */
    bool waiting;
    void (*run)(struct turn *turn);
};

/* -ENOMEM, or libuv's error. */
int turns_new(uv_loop_t *loop, struct turns **ret);

/* Every turn was ended. The memory is freed when libuv has closed the handles. NULL is fine. */
void turns_close(struct turns *turns);

/* Begins a turn's life, for a user. -ENOMEM. */
int turn_begin(struct turns *turns, struct turn *turn, uid_t uid, void (*run)(struct turn *turn));

/* Does not wait any more. Fine if it was ended or never begun. */
void turn_end(struct turn *turn);

/* Waits for a turn, behind the user's other ones. Fine if it waits already. */
void turn_wait(struct turn *turn);
