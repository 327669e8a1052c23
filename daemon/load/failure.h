/* Why something failed, as the client is told: a typed error and its parameters. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/load/steps.h"
#include "proto/errors.h"

#include <cjson/cJSON.h>

struct failure {
    enum wire_error error; /* WIRE_OK: nothing failed */
    cJSON *parameters;     /* owned; NULL: none */
};

/* Takes over `parameters`. The first failure stays: a later one is most often a consequence of the first. */
void failure_set(struct failure *failure, enum wire_error error, cJSON *parameters);

/* For an errno of opening, reading or checking a file: -ESTALE is FileChanged with "while-read", others FileError. */
void failure_set_file(struct failure *failure, int error, const struct device_fault *fault, const char *path);

/* As failure_set_file(). `when` is for FileChanged: "since-loaded" or "while-read". */
void failure_set_changed(struct failure *failure, int error, const struct device_fault *fault, const char *path,
                         const char *when);

/* For an errno of the device: DeviceError. OutOfDeviceMemory is not made here: its parameters need the ledger. */
void failure_set_device(struct failure *failure, int error, const struct device_fault *fault);

/* For a job that failed in load_job_identify(), load_job_lay_out() or load_job_open(). */
void failure_set_opening(struct failure *failure, const struct load_job *job);

/* The parameters of an error that a call to the system or to a device made. */
cJSON *failure_fault(int error, const struct device_fault *fault);

/* Frees the parameters. */
void failure_clear(struct failure *failure);

/* A copy of the parameters, which the caller owns: several calls may get the same failure. */
cJSON *failure_parameters(const struct failure *failure);

/* One line for the log. Writes at most `size` bytes. */
const char *failure_text(const struct failure *failure, char *text, size_t size);
