/* Why something failed, as a client will be told: a typed error and its parameters. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/load/steps.h"
#include "proto/errors.h"

#include <cjson/cJSON.h>

struct failure {
    enum wire_error error; /* WIRE_OK: nothing failed */
    cJSON *parameters;     /* owned; NULL: none */
};

/* Takes over `parameters`. The first failure stays: a later one is most often its consequence. */
void failure_set(struct failure *failure, enum wire_error error, cJSON *parameters);

/* For an errno of reading the file, or of its identity: FileChanged for -ESTALE, while it was read; else FileError. */
void failure_set_file(struct failure *failure, int error, const struct device_fault *fault, const char *path);

/* The same, and with -ESTALE when it changed: "since-loaded" or "while-read". */
void failure_set_changed(struct failure *failure, int error, const struct device_fault *fault, const char *path,
                         const char *when);

/* For an errno of the device: OutOfDeviceMemory is not made here, for it needs the ledger. */
void failure_set_device(struct failure *failure, int error, const struct device_fault *fault);

/* For what load_job_identify(), load_job_lay_out() or load_job_open() came to. */
void failure_set_opening(struct failure *failure, const struct load_job *job);

/* Frees the parameters. */
void failure_clear(struct failure *failure);

/* A copy of the parameters for one of several who are told. */
cJSON *failure_parameters(const struct failure *failure);

/* One line for the log. Writes at most `size` bytes. */
const char *failure_text(const struct failure *failure, char *text, size_t size);
