/* The steps of a verification that block. A worker runs them. A step uses only its job, and what the job compares. */
#pragma once

#include "daemon/base/worker.h"
#include "daemon/device/device.h"
#include "daemon/model/model.h"
#include "daemon/model/plan.h"
#include "daemon/model/source.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

/* Bytes that a job decodes and compares at once. */
#define VERIFY_BYTES (1u << 20)

/* Most mismatches that the reply has. */
#define VERIFY_TOLD_MAX 64u

/* What is compared. Several jobs read it at the same time; those that change it run alone. */
struct comparison {
    const struct model *model; /* it is held: its source, header, plan and arena stay as they are */
    struct source *loaded;     /* the files that the model was made of */
    struct source *source;     /* those that are read: opened by verify_job_open(), unless others were given */
    struct source *given;   /* NULL, or those that were given, if their order is another: `source` is in `loaded`'s */
    struct plan *plan;      /* made by verify_job_open() */
    struct source *renewed; /* `loaded`, opened again by verify_job_check(); NULL unless `source` is the same files */
    bool moves;             /* if the bytes are the same, and the files are others, they become the model's */
    bool takes;             /* they do: set by verify_job_check() */
    bool touched;           /* `source` differs from `loaded` in files, sizes or times */
    bool stale;             /* sizes or headers differ, so the bytes are not the same */
    bool replaced; /* a path of the files that the model has when the bytes are the same leads to another file */
    bool deleted;  /* one of these files was deleted; set by verify_job_check() */
};

struct verify_job {
    struct work work;
    void (*run)(struct verify_job *job);
    struct verify *verify; /* the caller's; no step uses it */

    /* In. */
    struct comparison *comparison;
    const struct chunk *chunk; /* of verify_job_chunk(); else NULL */
    uint8_t *expected;         /* two buffers of VERIFY_BYTES, the caller's */
    uint8_t *actual;

    /* Out. The caller has set them to zero. */
    int status;
    bool of_file; /* the error is the file's, not the device's */
    struct device_fault fault;
    size_t n_differences;
    struct {
        size_t tensor; /* its index */
        uint64_t byte; /* the first one that differs of those that were compared, from the tensor's first byte on */
    } differences[VERIFY_TOLD_MAX];
};

/* Opens the files as they are now, and compares their sizes, times and headers with the loaded ones. Unless they are
 * stale, makes a plan, cut for buffers of VERIFY_BYTES. Runs alone. */
void verify_job_open(struct verify_job *job);

/* Reads and decodes a chunk, and compares it with the device's memory. */
void verify_job_chunk(struct verify_job *job);

/* Compares the bytes of the device's memory that stand behind a tensor, and belong to none, with zeros. Runs alone. */
void verify_job_padding(struct verify_job *job);

/* Checks that the files did not change since they were opened. Else a file that changes while it is read would be
 * reported as an error in the device's memory. Runs alone. */
void verify_job_check(struct verify_job *job);
