/* Makes a model resident again from its description and its descriptors, without a look into its files. All is held
 * against the description first: what does not fit is an error, and nothing of it is used.
 *
 * Of a model on a GPU whose driver has not started yet, all is checked but the GPU and the memory on it: the driver
 * does that, at last in resume_settle(). Until then clients can be given the descriptor of the memory. A client's own
 * driver checks it when the client maps it, and the client knows the GPU by its UUID: what the daemon checks later
 * protects the daemon.
 *
 * Loop thread, at the start; may block for as long as it takes to parse the header. */
#pragma once

#include "daemon/device/awaited.h"
#include "daemon/device/devices.h"
#include "daemon/keep/description.h"
#include "daemon/model/registry.h"

#define RESUME_WHY_SIZE 256u

struct resume {
    struct registry *registry;
    struct devices *devices;
    struct awaited_gpus *awaited; /* for GPUs that are not among the devices; NULL: all devices are there */
    const struct description *description;

    /* resume_model() takes over all descriptors, also when it fails, and sets them to -1. -1: the store had none. */
    int arena_fd;
    int header_fds[SOURCE_FILES_MAX]; /* description->n_parts */
    int file_fds[SOURCE_FILES_MAX];   /* description->n_files */
};

/* Adds the model to the registry, resident, with its names, and with its bytes in the ledgers. 0 and the model; or a
 * negative errno and a sentence that says why. */
int resume_model(struct resume *resume, struct model **ret, char why[RESUME_WHY_SIZE]);

/* The drivers have started: the model's memory is taken over by the GPU that it was kept on, and that becomes its
 * device. 0; or a negative errno and a sentence that says why: nothing has changed then. */
int resume_settle(struct model *model, struct devices *devices, char why[RESUME_WHY_SIZE]);
