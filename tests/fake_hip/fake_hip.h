/* A replacement for libamdhip64 for tests. It has the same soname and those calls that rocmforge uses, and works with
 * CPU memory and threads. It tests the logic of the GPU modules, not the hardware.
 *
 * Where a GPU would give undefined results, it is stricter:
 *
 *   - New memory is full of bytes, as if another program had used it.
 *   - The target of a copy or kernel holds garbage until the copy or kernel has ended.
 *   - Pointers are checked: they have to be in an allocation, and on the right device.
 *   - Copies to the device from memory that is not pinned are refused. Copies to such memory end before the
 *     call returns.
 *   - A handle cannot be opened by the process that made it. If a process opens it twice it gets one mapping, which the
 *     first close removes. A close has to come directly after a wait for the device.
 *   - Memory that is shared by descriptors is mapped as a whole or not at all. A device that writes to a mapping which
 *     may only be read is lost. What is released twice, or freed while it is mapped, ends the process.
 *   - A child process cannot make calls after fork() if its parent made some.
 *
 * Environment variables, read at the first call:
 *
 *   FAKE_HIP_DEVICES=N     number of devices; default 1; 0: hipGetDeviceCount() fails with hipErrorNoDevice; -1: it
 *                          succeeds and counts 0
 *   FAKE_HIP_NAMELESS=1    devices have an empty name, like boards that ROCm does not know
 *   FAKE_HIP_TEXTS=names   hipGetErrorString() returns the name of an error, as in ROCm 5; default: a sentence, as in
 *                          ROCm 6
 *   FAKE_HIP_MEMORY=BYTES  memory of each device; default 1 GiB
 *   FAKE_HIP_SLOW=copy=US,kernel=US,clear=US,info=US,start=US
 *                          the longest time that each of these takes, in microseconds; the time is random below that,
 *                          but `info`, hipMemGetInfo(), and `start`, the first call, take exactly as long
 *   FAKE_HIP_SEED=N        seed of these random times
 *   FAKE_HIP_UUID=TEXT     the first four characters of the devices' UUIDs; default "fa4e"
 *   FAKE_HIP_TAKEN=BYTES   memory of the first device that other programs use
 *   FAKE_HIP_LEAK=1        freed memory stays in use
 *   FAKE_HIP_GATE=PATH     copies wait while this file exists
 *   FAKE_HIP_HANG=PATH     a call that the file PATH names, as "hipMalloc 1" for that of the device 1, does not return
 *                          while it does
 *   FAKE_HIP_NO_BINARY=1   the embedded kernels are for another device
 *   FAKE_HIP_OWN_ONLY=1    only the user of the process that made a handle can open it
 *   FAKE_HIP_NO_VMM=1      memory cannot be shared by descriptors
 *   FAKE_HIP_NO_READ_ONLY=1
 *                          such memory cannot be mapped read-only
 *   FAKE_HIP_GRANULARITY=BYTES
 *                          granularity of such memory, a multiple of 2 MiB; default 2 MiB
 *   FAKE_HIP_VERSION=N     what hipRuntimeGetVersion() returns; from 70100000 (ROCm 7.1) on a descriptor is imported by
 *                          its number, before that by its address; default: that of the headers
 *   FAKE_HIP_FAIL=SPEC     as in fake_hip_fail()
 *   FAKE_HIP_FAIL=@PATH    SPEC is the text of the file PATH, and is read again when there is a new file. After
 *                          the fault the file is deleted. If the file is deleted before that, there is no fault
 *
 * Tests that load it into their own process find the functions below with dlsym(). */
#pragma once

#include <stdbool.h>

#define FAKE_CALLS_MAX 96

/* Objects that were created and not released. */
struct fake_hip_live {
    int allocations;
    int pinned;
    int streams;
    int events;
    int modules;
    int opened;    /* handles of other processes that are open, and imported allocations */
    int addresses; /* ranges of addresses that were reserved */

    unsigned contexts; /* one bit for each device that was used at least once: on a real device, use takes memory until
                          the process ends */
};

/* Makes calls fail from now on. SPEC is CALL:N[+][:CODE[!]]: the Nth call (from 1), or with + each call from the Nth
 * on, does nothing and returns CODE; default 999, hipErrorUnknown. A call that releases something releases it all
 * the same. CALL is a name, or "*" for any call. "copy", "kernel" and "clear" are not calls but the work that a
 * stream does. This work fails after the call that requested it has returned; then its device returns CODE (default
 * 719, hipErrorLaunchFailure) from each call. A code that a real device does not recover from has the same effect,
 * unless "!" follows it. NULL: nothing fails, and lost devices work again. Counts start again from 0. */
void fake_hip_fail(const char *spec);

/* Whether a call or work failed since then. */
bool fake_hip_fired(void);

/* How often a call was made since then. Calls have indexes from 0 on, in the order in which the process first made
 * them. Returns false after the last one. */
bool fake_hip_call(unsigned index, const char **ret_name, unsigned long *ret_calls);

void fake_hip_count(struct fake_hip_live *ret);

/* How often a stream that copies got an event that has a time or that a thread can sleep on. On a real device such
 * an event delays the next copy. */
unsigned long fake_hip_copies_delayed(void);

/* From now on another thread captures a stream of this device, in the mode hipStreamCaptureModeGlobal; -1: no
 * capture. Calls that wait for the whole device or use its null stream are refused and break the capture. So are
 * calls that open, close or wait for something, unless their thread is in the mode hipStreamCaptureModeRelaxed. */
void fake_hip_capture(int device);
/* Whether the last capture is unbroken, or was when it ended. */
bool fake_hip_captured(void);

/* Calls of this name are counted and then wait, until another name is set. NULL: no call waits. */
void fake_hip_hold(const char *call);
