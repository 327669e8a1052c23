/* What a load has workers do: the steps that block. Each runs once, on its own, and touches nothing but the job. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/device/devices.h"
#include "daemon/gguf/gguf.h"
#include "daemon/model/access.h"
#include "daemon/model/plan.h"
#include "daemon/model/publication.h"
#include "daemon/model/source.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct load_job {
    uv_work_t work;
    void (*run)(struct load_job *job);

    /* In. Borrowed but for the descriptors, which load_job_identify() takes. */
    int fds[SOURCE_FILES_MAX];
    size_t n_fds; /* 0: by path */
    const char *path;
    bool trusted; /* may have the daemon read, by path, what not everyone may read */
    struct source *opened;
    struct device *device;
    const struct device_set *among; /* other devices that it may come to */
    const struct forms *forms;
    const struct plan *planned;
    const struct gguf *known; /* the header as it was read before */
    bool decode_on_cpu;
    struct arena *filled;

    /* Out. Owned by the job until they are taken, which leaves NULL, or nothing published. */
    int status;
    bool refused; /* with -EACCES of load_job_identify(): by us, not by open() */
    struct device_fault fault;
    struct gguf_fault gguf_fault;
    bool of_file;  /* it was the file that failed load_job_seal(), not the device */
    bool of_host;  /* with -ENOMEM: of memory for the job itself, not of the device's */
    size_t tensor; /* with -ENOTSUP */
    size_t file;   /* with -EBADMSG: which of a split model's */
    struct source *source;
    struct access_facts *facts; /* of the source's files */
    struct gguf *header;
    struct plan *plan;
    struct arena *arena;
    struct device_export export; /* the arena's */
    struct publication published;
    uint64_t reach[DEVICES_MAX]; /* of those it is among, for survey_note() */
    uint64_t memory_free;        /* with -ENOMEM of load_job_allocate() */
    uint64_t elapsed_ns;
    uint64_t begin_ns; /* set by the caller of run() */
    uint64_t end_ns;
};

/* fds, or path and trusted → source, facts. Errors: those of source_open_path(); or -EACCES and `refused`, whatever the
 * path leads to, if the caller may not have it read. */
void load_job_identify(struct load_job *job);

/* opened, device, forms → header, plan, which is not cut. Errors: those of split_read() and plan_new(). */
void load_job_lay_out(struct load_job *job);

/* As load_job_lay_out(), and with decode_on_cpu and `among` the plan is cut for the device's slots; one that is larger
 * than any device's budget, and will never be filled, is not. Sets `reach`. */
void load_job_open(struct load_job *job);

/* opened, known → source: the files as they are now, if they were touched since they were opened; else NULL.
 * -ESTALE: what their headers say is not what it was; or an errno of reading them. */
void load_job_look_again(struct load_job *job);

/* planned, device → arena. -ENOMEM sets of_host, or memory_free. */
void load_job_allocate(struct load_job *job);

/* planned, device → arena, and in `plan` a plan of its bytes as they lie. -ENOMEM as of load_job_allocate(). */
void load_job_reallocate(struct load_job *job);

/* planned, filled → published, export. opened NULL: the export alone. Errors: those of publication_make(), of which
 * -ENOMEM sets of_host, and of the device. */
void load_job_publish(struct load_job *job);

/* opened, filled → nothing. -ESTALE if the file changed meanwhile; opened NULL: there is none. */
void load_job_seal(struct load_job *job);

/* among → reach: asks the drivers, for others than this daemon use their devices too. */
void load_job_ask(struct load_job *job);

/* Just comes back. */
void load_job_nothing(struct load_job *job);

/* filled, device → nothing. */
void load_job_release(struct load_job *job);

/* What `run` does, in a word: "parse", "allocate", ... Static. */
const char *load_job_name(const struct load_job *job);

/* Frees header and plan, if they were not taken: they will be made again. */
void load_job_forget(struct load_job *job);

/* Closes and frees what was not taken. The arena was: freeing that blocks, so it is left to load_job_release(). */
void load_job_clear(struct load_job *job);
