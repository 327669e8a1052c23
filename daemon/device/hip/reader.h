/* Reads arenas back into memory of the CPU, through pinned memory of its own.
 *
 * HIP_READERS threads read at a time; one more waits until another has read all that it asked for. */
#pragma once

#include "daemon/device/hip/hip.h"

/* Loop, once, when the device is opened. Makes the locks. */
void hip_reader_init(struct hip_device *hip);

/* Loop, once, after hip_reader_init(). Makes the first reader's stream, events and pinned memory. After an error,
 * hip_reader_drop() frees what was made. */
int hip_reader_make(struct hip_device *hip, struct device_fault *ret_fault);

/* Loop, once, at the end. Nobody reads. Frees what was made, which may be nothing but the locks. */
void hip_reader_drop(struct hip_device *hip);

/* Worker: device_ops.arena_read. Blocks. When it returns, with an error too, nothing uses `dst` or the arena. */
/* As hip_arena_read(), to memory that the device can copy to. */
int hip_arena_save(struct arena *arena, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault);

int hip_arena_read(struct arena *arena, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault);
