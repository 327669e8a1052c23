#include "daemon/opening.h"

#include "daemon/base/log.h"
#include "daemon/modules.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

struct opening {
    struct core *core;
    struct devices *devices;
    const struct options *options;
    opening_fn *opened;
    void *context;
    pthread_t thread;
    struct devices gpus; /* the thread's, until the letter is delivered */
    int status;          /* the same */
    struct letter letter;
};

static void *work(void *context)
{
    struct opening *opening = context;
    opening->status = modules_open_gpus(&opening->gpus, opening->options, opening->core->workers);
    mailbox_post(opening->core->mailbox, &opening->letter);
    return NULL;
}

static void deliver(struct letter *letter)
{
    struct opening *opening = (struct opening *)((char *)letter - offsetof(struct opening, letter));
    struct core *core = opening->core;
    pthread_join(opening->thread, NULL);
    if (opening->status == 0) {
        opening->status = devices_join(opening->devices, &opening->gpus);
        if (opening->status < 0)
            log_error("there are too many devices");
    }
    devices_close(&opening->gpus); /* after an error */
    opening->opened(opening->context, opening->status);
    free(opening);
    core_job_end(core);
}

int opening_begin(struct core *core, struct devices *devices, const struct options *options, opening_fn *opened,
                  void *context)
{
    struct opening *opening = calloc(1, sizeof(*opening));
    if (!opening)
        return -ENOMEM;
    *opening = (struct opening){.core = core,
                                .devices = devices,
                                .options = options,
                                .opened = opened,
                                .context = context,
                                .letter.deliver = deliver};
    /* Signals are for the loop. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&opening->thread, NULL, work, opening);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        free(opening);
        return -error;
    }
    core_job_begin(core);
    return 0;
}
