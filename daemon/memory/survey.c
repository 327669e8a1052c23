#include "daemon/memory/survey.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

TAILQ_HEAD(request_list, survey_request);

/* The thread, and what it has. If a driver does not return, the survey takes another one. */
struct asker {
    struct survey *survey; /* loop; NULL: it was given up */
    struct letter letter;
    struct mailbox *mailbox;
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

struct survey {
    struct core *core;
    struct devices *devices;
    struct request_list waiting; /* requests for the next survey */
    struct request_list asking;  /* requests for the survey that is running */
    bool under_way;
    uint64_t asked_at;   /* uv_hrtime() when the survey that is running began */
    struct asker *asker; /* NULL: none could be started */
};

void survey_note(struct device *device, uint64_t reach)
{
    if (reach > 0)
        device->reach = reach;
}

static void ask(struct asker *asker)
{
    for (size_t i = 0; i < asker->n; i++) {
        struct device_fault unused;
        if (device_survey(asker->asked[i], &asker->reach[i], &unused) < 0)
            asker->reach[i] = 0;
    }
}

static void *work(void *context)
{
    struct asker *asker = context;
    pthread_mutex_lock(&asker->lock);
    for (;;) {
        while (!asker->wanted && !asker->ends)
            pthread_cond_wait(&asker->wake, &asker->lock);
        if (asker->ends)
            break;
        asker->wanted = false;
        pthread_mutex_unlock(&asker->lock);
        ask(asker);
        mailbox_post(asker->mailbox, &asker->letter);
        pthread_mutex_lock(&asker->lock);
    }
    pthread_mutex_unlock(&asker->lock);
    return NULL;
}

static void answered(struct letter *letter);

static int asker_new(struct survey *survey, struct asker **ret)
{
    struct asker *asker = calloc(1, sizeof(*asker));
    if (!asker)
        return -ENOMEM;
    asker->survey = survey;
    asker->mailbox = survey->core->mailbox;
    asker->letter.deliver = answered;
    pthread_mutex_init(&asker->lock, NULL);
    pthread_cond_init(&asker->wake, NULL);
    int r = -pthread_create(&asker->thread, NULL, work, asker);
    if (r < 0) {
        free(asker);
        return r;
    }
    *ret = asker;
    return 0;
}

/* The thread asks nothing now. */
static void asker_free(struct asker *asker)
{
    pthread_mutex_lock(&asker->lock);
    asker->ends = true;
    pthread_cond_signal(&asker->wake);
    pthread_mutex_unlock(&asker->lock);
    pthread_join(asker->thread, NULL);
    pthread_mutex_destroy(&asker->lock);
    pthread_cond_destroy(&asker->wake);
    free(asker);
}

static void survey_end(struct survey *survey);

static void begin(struct survey *survey)
{
    struct asker *asker = survey->asker;
    survey->under_way = true;
    survey->asked_at = uv_hrtime();
    TAILQ_CONCAT(&survey->asking, &survey->waiting, link);
    core_job_begin(survey->core);
    if (!asker && asker_new(survey, &survey->asker) < 0) {
        survey_end(survey); /* what is known has to do */
        return;
    }
    asker = survey->asker;
    asker->n = 0;
    for (size_t i = 0; i < survey->devices->n; i++)
        if (!survey->devices->devices[i]->failed)
            asker->asked[asker->n++] = survey->devices->devices[i];
    pthread_mutex_lock(&asker->lock);
    asker->wanted = true;
    pthread_cond_signal(&asker->wake);
    pthread_mutex_unlock(&asker->lock);
}

/* The survey is over. If this was the last job the daemon ends, and `survey` may be freed. */
static void survey_end(struct survey *survey)
{
    struct survey_request *request;
    survey->under_way = false;
    while ((request = TAILQ_FIRST(&survey->asking))) {
        TAILQ_REMOVE(&survey->asking, request, link);
        request->done(request);
    }
    if (!TAILQ_EMPTY(&survey->waiting))
        begin(survey);
    core_job_end(survey->core);
}

static void answered(struct letter *letter)
{
    struct asker *asker = (struct asker *)((char *)letter - offsetof(struct asker, letter));
    struct survey *survey = asker->survey;
    if (!survey) {
        asker_free(asker);
        return;
    }
    for (size_t i = 0; i < asker->n; i++)
        survey_note(asker->asked[i], asker->reach[i]);
    survey_end(survey);
}

void survey_give_up(struct survey *survey)
{
    if (!survey->under_way)
        return;
    survey->asker->survey = NULL;
    survey->asker = NULL;
    survey_end(survey);
}

int survey_new(struct core *core, struct devices *devices, struct survey **ret)
{
    struct survey *survey = calloc(1, sizeof(*survey));
    if (!survey)
        return -ENOMEM;
    survey->core = core;
    survey->devices = devices;
    TAILQ_INIT(&survey->waiting);
    TAILQ_INIT(&survey->asking);
    int r = asker_new(survey, &survey->asker);
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
    if (survey->asker)
        asker_free(survey->asker);
    free(survey);
}
