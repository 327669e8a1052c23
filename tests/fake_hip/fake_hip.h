/* A stand-in for libamdhip64, with its soname and the calls that rocmforge uses, on CPU memory and real threads. It
 * proves the logic of the GPU modules, not the hardware.
 *
 * Stricter than a GPU wherever one would be merely undefined: memory is handed out full of another owner's bytes; the
 * target of a copy or of a kernel holds garbage until it has ended; pointers are checked against allocations and
 * devices; a copy from memory that is not pinned is refused, and one to such memory is over when the call returns; a
 * handle cannot be opened by the process that made it, and opened twice in one process it gives one mapping, which the
 * first close takes away; nor can it be closed but right after its device was waited for; and a process that was forked
 * from one that made calls can make none.
 *
 * Environment, read at the first call:
 *   FAKE_HIP_DEVICES=N     devices; default 1; 0: hipGetDeviceCount() fails with hipErrorNoDevice; -1: it succeeds, and
 *                          counts none
 *   FAKE_HIP_NAMELESS=1    devices have an empty name, as ROCm gives it to a board that it does not know
 *   FAKE_HIP_TEXTS=names   hipGetErrorString() returns an error's name, as in ROCm 5; default: a sentence, as in ROCm 6
 *   FAKE_HIP_MEMORY=BYTES  of each device; default 1 GiB
 *   FAKE_HIP_SLOW=copy=US,kernel=US,clear=US
 *                          how long these take at most, in microseconds; each takes a random part of it
 *   FAKE_HIP_SEED=N        of those
 *   FAKE_HIP_TAKEN=BYTES   of the first device, by others
 *   FAKE_HIP_LEAK=1        memory that is freed stays in use
 *   FAKE_HIP_GATE=PATH     no copy is done while there is such a file
 *   FAKE_HIP_NO_BINARY=1   the embedded kernels are for another device
 *   FAKE_HIP_OWN_ONLY=1    a handle cannot be opened by another user than that of the process that made it
 *   FAKE_HIP_FAIL=SPEC     as fake_hip_fail()
 *   FAKE_HIP_FAIL=@PATH    the same, with what stands in the file PATH, whenever there is a new one; it is gone once
 *                          something failed, and who takes it away before that calls the fault off
 *
 * Tests that have it in their own process find the functions below with dlsym(). */
#pragma once

#include <stdbool.h>

#define FAKE_CALLS_MAX 64

/* What was made and not given back. */
struct fake_hip_live {
    int allocations;
    int pinned;
    int streams;
    int events;
    int modules;
    int opened; /* mappings of handles */

    unsigned contexts; /* a bit for each device that was used at all: on a real one that takes memory, and for good */
};

/* Makes calls fail from here on. SPEC is CALL:N[+][:CODE[!]]: the Nth call (from 1), or with + every one from the Nth
 * on, returns CODE (999, hipErrorUnknown) and does nothing, but that a call which releases something releases it all
 * the same. CALL is a name, or "*" for any. "copy", "kernel" and "clear" are not calls but the work itself, which fails
 * after the call that asked for it has returned: its device then returns CODE (719, hipErrorLaunchFailure) for
 * everything, as it does after any of the codes that a real one does not recover from, but with "!". NULL: nothing
 * fails, and devices that were lost are well again. Counts start anew. */
void fake_hip_fail(const char *spec);

/* Something failed since. */
bool fake_hip_fired(void);

/* How often a call was made since. Calls have indexes from 0 on, in the order in which they were first made by the
 * process; returns false behind the last. */
bool fake_hip_call(unsigned index, const char **ret_name, unsigned long *ret_calls);

void fake_hip_count(struct fake_hip_live *ret);

/* How often a stream that copies was given an event that takes the time, or that a thread can sleep for: on a real
 * device the copy behind it begins later then. */
unsigned long fake_hip_copies_delayed(void);

/* From here on a stream of the device is being captured, in the mode hipStreamCaptureModeGlobal, by a thread that has
 * nothing to do with the caller's; -1: none is. It is broken, and the call refused, by what waits for the whole device
 * or uses its null stream; and, from a thread that is not in the mode hipStreamCaptureModeRelaxed, by what opens,
 * closes or waits for anything. */
void fake_hip_capture(int device);
/* The capture that was begun last is, or was until its end, unbroken. */
bool fake_hip_captured(void);

/* Holds calls of this name up, once they are counted, until another is named; NULL: none is. */
void fake_hip_hold(const char *call);
