/* State machines: the states of a kind of object, their names, and which may follow which, in one table.
 *
 *     static const struct state states[] = {
 *         [DOOR_OPEN] = {"open", STATE(DOOR_SHUT)},
 *         [DOOR_SHUT] = {"shut", STATE(DOOR_OPEN) | STATE(DOOR_LOCKED)},
 *         [DOOR_LOCKED] = {"locked", STATE(DOOR_SHUT)},
 *     };
 *     static const struct state_machine door = STATE_MACHINE(states);
 *
 *     state_move(&door, &object->state, DOOR_LOCKED);
 *
 * Any thread: the tables are constant. */
#pragma once

#include <assert.h>
#include <stdbool.h>

struct state {
    const char *name;
    unsigned next; /* the states that may follow: STATE(a) | STATE(b) */
};

struct state_machine {
    const struct state *states;
    unsigned n;
};

#define STATE(state) (1u << (state))
#define STATE_MACHINE(states)                                                                                          \
    {                                                                                                                  \
        (states), sizeof(states) / sizeof((states)[0])                                                                 \
    }

/* Whether `to` may follow `from`. False for a number that is no state. */
static inline bool state_may_follow(const struct state_machine *machine, unsigned from, unsigned to)
{
    return from < machine->n && to < machine->n && (machine->states[from].next & STATE(to));
}

/* Static; "unknown" for a number that is no state. */
static inline const char *state_name(const struct state_machine *machine, unsigned state)
{
    return state < machine->n ? machine->states[state].name : "unknown";
}

/* Sets *state, an enum, to a state that may follow. Another one is a bug of the caller, and ends the program. */
#define state_move(machine, state, to)                                                                                 \
    do {                                                                                                               \
        assert(state_may_follow((machine), *(state), (to)));                                                           \
        *(state) = (to);                                                                                               \
    } while (0)
