#include "daemon/memory/survey.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

TAILQ_HEAD(request_list, survey_request);

struct survey {
    struct core *core;
    struct devices *devices;
    struct request_list waiting; /* requests for the next survey */
    struct request_list asking;  /* requests for the survey that is running */
    bool under_way;
    uint64_t asked_at; /* uv_hrtime() when the survey that is running began */
    struct letter letter;

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool wanted; /* `wanted` and `ends` are protected by the lock */
    bool ends;

    /* While a survey is running, these belong to the thread. */
    size_t n;
    struct device *asked[DEVICES_MAX];
    uint64_t reach[DEVICES_MAX];
};

void survey_note(struct device *device, uint64_t reach)
{
    if (reach > 0)
        device->reach = reach;
}

static void ask(struct survey *survey)
{
    for (size_t i = 0; i < survey->n; i++) {
        struct device_fault unused;
        if (device_survey(survey->asked[i], &survey->reach[i], &unused) < 0)
            survey->reach[i] = 0;
    }
}

static void *work(void *context)
{
    struct survey *survey = context;
    pthread_mutex_lock(&survey->lock);
    for (;;) {
        while (!survey->wanted && !survey->ends)
            pthread_cond_wait(&survey->wake, &survey->lock);
        if (survey->ends)
            break;
        survey->wanted = false;
        pthread_mutex_unlock(&survey->lock);
        ask(survey);
        mailbox_post(survey->core->mailbox, &survey->letter);
        pthread_mutex_lock(&survey->lock);
    }
    pthread_mutex_unlock(&survey->lock);
    return NULL;
}

static void begin(struct survey *survey)
{
    survey->under_way = true;
    survey->asked_at = uv_hrtime();
    TAILQ_CONCAT(&survey->asking, &survey->waiting, link);
    survey->n = 0;
    for (size_t i = 0; i < survey->devices->n; i++)
        if (!survey->devices->devices[i]->failed)
            survey->asked[survey->n++] = survey->devices->devices[i];
    core_job_begin(survey->core);
    pthread_mutex_lock(&survey->lock);
    survey->wanted = true;
    pthread_cond_signal(&survey->wake);
    pthread_mutex_unlock(&survey->lock);
}

static void answered(struct letter *letter)
{
    struct survey *survey = (struct survey *)((char *)letter - offsetof(struct survey, letter));
    survey->under_way = false;
    for (size_t i = 0; i < survey->n; i++)
        survey_note(survey->asked[i], survey->reach[i]);
    struct survey_request *request;
    while ((request = TAILQ_FIRST(&survey->asking))) {
        TAILQ_REMOVE(&survey->asking, request, link);
        request->done(request);
    }
    if (!TAILQ_EMPTY(&survey->waiting))
        begin(survey);
    core_job_end(survey->core); /* if this was the last job the daemon ends: `survey` may be freed now */
}

int survey_new(struct core *core, struct devices *devices, struct survey **ret)
{
    struct survey *survey = calloc(1, sizeof(*survey));
    if (!survey)
        return -ENOMEM;
    survey->core = core;
    survey->devices = devices;
    survey->letter.deliver = answered;
    TAILQ_INIT(&survey->waiting);
    TAILQ_INIT(&survey->asking);
    pthread_mutex_init(&survey->lock, NULL);
    pthread_cond_init(&survey->wake, NULL);
    int r = -pthread_create(&survey->thread, NULL, work, survey);
    if (r < 0) {
        free(survey);
        return r;
    }
    *ret = survey;
    return 0;
}

/* A running survey may have asked the drivers before this call, so the request waits for the next survey. */
void survey_ask(struct survey *survey, struct survey_request *request)
{
    TAILQ_INSERT_TAIL(&survey->waiting, request, link);
    if (!survey->under_way)
        begin(survey);
}

bool survey_hangs(const struct survey *survey, uint64_t asked_before)
{
    return survey->under_way && survey->asked_at < asked_before;
}

static bool take_out(struct request_list *list, struct survey_request *request)
{
    struct survey_request *other;
    TAILQ_FOREACH(other, list, link)
    {
        if (other == request) {
            TAILQ_REMOVE(list, request, link);
            return true;
        }
    }
    return false;
}

void survey_forget(struct survey *survey, struct survey_request *request)
{
    if (!take_out(&survey->waiting, request))
        (void)take_out(&survey->asking, request);
}

void survey_free(struct survey *survey)
{
    if (!survey)
        return;
    assert(!survey->under_way);
    pthread_mutex_lock(&survey->lock);
    survey->ends = true;
    pthread_cond_signal(&survey->wake);
    pthread_mutex_unlock(&survey->lock);
    pthread_join(survey->thread, NULL);
    pthread_mutex_destroy(&survey->lock);
    pthread_cond_destroy(&survey->wake);
    free(survey);
}
