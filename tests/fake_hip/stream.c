/* Streams, each of which is a thread; events; and the copies and kernels that streams run. */
#include "kernels/dequant.h"
#include "kernels/dequant_gpu.h"
#include "tests/fake_hip/internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What the target of a copy or kernel holds until it has ended. */
#define UNDER_WAY 0xee

struct ihipStream_t {
    int device;
    struct op *head, **tail;
    uint64_t given, done; /* number of ops */
    bool stop;
    bool copies; /* it copied something to the device */
    pthread_t thread;
    struct ihipStream_t *next;
};

struct ihipEvent_t {
    int references; /* one by the owner, and one by each op that uses it */
    bool timed, blocking;
    uint64_t given, reached; /* number of records */
    double at_ms;
};

struct ihipModule_t {
    int device;
    struct ihipModuleSymbol_t *symbols;
};

struct ihipModuleSymbol_t {
    struct ihipModule_t *module;
    struct ihipModuleSymbol_t *next;
    const struct tensor_type *type;
    enum form form;
};

static struct ihipStream_t *streams;
static unsigned long copies_delayed;

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* With fake_lock held. */
static void event_unref(struct ihipEvent_t *event)
{
    if (event && --event->references == 0)
        free(event);
}

static void *stream_main(void *argument)
{
    struct ihipStream_t *stream = argument;
    pthread_mutex_lock(&fake_lock);
    for (;;) {
        struct op *op = stream->head;
        if (!op) {
            if (stream->stop)
                break;
            pthread_cond_wait(&fake_changed, &fake_lock);
            continue;
        }
        stream->head = op->next;
        if (!stream->head)
            stream->tail = &stream->head;
        pthread_mutex_unlock(&fake_lock);
        if (!op->what || fake_work(op->what, stream->device))
            op->run(op, stream->device);
        pthread_mutex_lock(&fake_lock);
        event_unref(op->event);
        free(op);
        stream->done++;
        pthread_cond_broadcast(&fake_changed);
    }
    pthread_mutex_unlock(&fake_lock);
    return NULL;
}

void fake_enqueue(hipStream_t stream, struct op *op)
{
    pthread_mutex_lock(&fake_lock);
    if (op->event)
        op->event->references++;
    op->next = NULL;
    *stream->tail = op;
    stream->tail = &op->next;
    stream->given++;
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
}

void fake_drain(int device)
{
    pthread_mutex_lock(&fake_lock);
    struct ihipStream_t *stream = streams;
    while (stream) {
        if (stream->device != device || stream->done == stream->given) {
            stream = stream->next;
            continue;
        }
        pthread_cond_wait(&fake_changed, &fake_lock);
        stream = streams; /* the list may have changed */
    }
    pthread_mutex_unlock(&fake_lock);
}

FAKE_EXPORT hipError_t hipStreamCreateWithFlags(hipStream_t *ret, unsigned flags)
{
    FAKE_ENTER_UNSAFE(fake_current, false);
    if (flags != hipStreamNonBlocking)
        return hipErrorInvalidValue;
    struct ihipStream_t *stream = calloc(1, sizeof(*stream));
    stream->device = fake_current;
    stream->tail = &stream->head;
    if (pthread_create(&stream->thread, NULL, stream_main, stream) != 0)
        abort();
    pthread_mutex_lock(&fake_lock);
    stream->next = streams;
    streams = stream;
    fake_live.streams++;
    pthread_mutex_unlock(&fake_lock);
    *ret = stream;
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipStreamDestroy(hipStream_t stream)
{
    hipError_t error = fake_enter(__func__, stream->device);
    pthread_mutex_lock(&fake_lock);
    stream->stop = true;
    for (struct ihipStream_t **at = &streams; *at; at = &(*at)->next)
        if (*at == stream) {
            *at = stream->next;
            break;
        }
    fake_live.streams--;
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
    pthread_join(stream->thread, NULL);
    free(stream);
    return error;
}

static void stream_drain(hipStream_t stream)
{
    pthread_mutex_lock(&fake_lock);
    const uint64_t given = stream->given;
    while (stream->done < given)
        pthread_cond_wait(&fake_changed, &fake_lock);
    pthread_mutex_unlock(&fake_lock);
}

FAKE_EXPORT hipError_t hipStreamSynchronize(hipStream_t stream)
{
    /* Also if the call is made to fail: on a GPU that is lost nothing is under way any more. */
    stream_drain(stream);
    FAKE_ENTER_UNSAFE(stream->device, false);
    return fake_lost(stream->device);
}

static struct op *op_new(void (*run)(struct op *op, int device), const char *what)
{
    struct op *op = calloc(1, sizeof(*op));
    if (!op)
        abort();
    op->run = run;
    op->what = what;
    return op;
}

/* Events. */

static void run_record(struct op *op, int device)
{
    (void)device;
    pthread_mutex_lock(&fake_lock);
    if (op->event->reached < op->ticket)
        op->event->reached = op->ticket;
    op->event->at_ms = now_ms();
    pthread_mutex_unlock(&fake_lock);
}

static void run_wait(struct op *op, int device)
{
    (void)device;
    pthread_mutex_lock(&fake_lock);
    while (op->event->reached < op->ticket)
        pthread_cond_wait(&fake_changed, &fake_lock);
    pthread_mutex_unlock(&fake_lock);
}

FAKE_EXPORT hipError_t hipEventCreateWithFlags(hipEvent_t *ret, unsigned flags)
{
    FAKE_ENTER(fake_current);
    struct ihipEvent_t *event = calloc(1, sizeof(*event));
    event->references = 1;
    event->timed = !(flags & hipEventDisableTiming);
    event->blocking = flags & hipEventBlockingSync;
    pthread_mutex_lock(&fake_lock);
    fake_live.events++;
    pthread_mutex_unlock(&fake_lock);
    *ret = event;
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipEventDestroy(hipEvent_t event)
{
    hipError_t error = fake_enter(__func__, fake_current);
    pthread_mutex_lock(&fake_lock);
    fake_live.events--;
    event_unref(event);
    pthread_mutex_unlock(&fake_lock);
    return error;
}

FAKE_EXPORT hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream)
{
    FAKE_ENTER(stream->device);
    struct op *op = op_new(run_record, NULL);
    op->event = event;
    pthread_mutex_lock(&fake_lock);
    op->ticket = ++event->given;
    copies_delayed += stream->copies && (event->timed || event->blocking);
    pthread_mutex_unlock(&fake_lock);
    fake_enqueue(stream, op);
    return hipSuccess;
}

FAKE_EXPORT unsigned long fake_hip_copies_delayed(void)
{
    pthread_mutex_lock(&fake_lock);
    const unsigned long delayed = copies_delayed;
    pthread_mutex_unlock(&fake_lock);
    return delayed;
}

/* Counts as a call only if the event was reached: how often a caller polls before that is random. */
FAKE_EXPORT hipError_t hipEventQuery(hipEvent_t event)
{
    pthread_mutex_lock(&fake_lock);
    const bool reached = event->reached >= event->given;
    pthread_mutex_unlock(&fake_lock);
    const hipError_t lost = fake_lost(fake_current);
    if (!reached || lost != hipSuccess)
        return lost != hipSuccess ? lost : hipErrorNotReady;
    FAKE_ENTER(fake_current);
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipEventSynchronize(hipEvent_t event)
{
    FAKE_ENTER(fake_current);
    pthread_mutex_lock(&fake_lock);
    const uint64_t given = event->given;
    while (event->reached < given)
        pthread_cond_wait(&fake_changed, &fake_lock);
    pthread_mutex_unlock(&fake_lock);
    return fake_lost(fake_current);
}

FAKE_EXPORT hipError_t hipEventElapsedTime(float *ms, hipEvent_t start, hipEvent_t stop)
{
    FAKE_ENTER(fake_current);
    hipError_t error = hipSuccess;
    pthread_mutex_lock(&fake_lock);
    if (!start->timed || !stop->timed || start->given == 0 || stop->given == 0)
        error = hipErrorInvalidHandle;
    else if (start->reached < start->given || stop->reached < stop->given)
        error = hipErrorNotReady;
    else
        *ms = (float)(stop->at_ms - start->at_ms);
    pthread_mutex_unlock(&fake_lock);
    return error;
}

FAKE_EXPORT hipError_t hipStreamWaitEvent(hipStream_t stream, hipEvent_t event, unsigned flags)
{
    FAKE_ENTER(stream->device);
    (void)flags;
    struct op *op = op_new(run_wait, NULL);
    op->event = event;
    pthread_mutex_lock(&fake_lock);
    op->ticket = event->given;
    pthread_mutex_unlock(&fake_lock);
    fake_enqueue(stream, op);
    return hipSuccess;
}

/* Copies. Garbage first, then a pause, then one half after the other: a test that reads too early sees it. */

static void run_copy(struct op *op, int device)
{
    if (op->value && !fake_writable(op->dst, op->bytes, device)) {
        fake_lose(device, hipErrorIllegalAddress);
        return;
    }
    memset(op->dst, UNDER_WAY, op->bytes);
    fake_gate();
    fake_delay("copy");
    memcpy(op->dst, op->src, op->bytes / 2);
    memcpy((uint8_t *)op->dst + op->bytes / 2, (const uint8_t *)op->src + op->bytes / 2, op->bytes - op->bytes / 2);
}

FAKE_EXPORT hipError_t hipMemcpyAsync(void *dst, const void *src, size_t bytes, hipMemcpyKind kind, hipStream_t stream)
{
    FAKE_ENTER(stream->device);
    const bool in = kind == hipMemcpyHostToDevice;
    enum block_kind host;
    int owner;
    const bool pinned = fake_find(in ? src : dst, bytes, &host, &owner) && host == BLOCK_PINNED;
    if ((!in && kind != hipMemcpyDeviceToHost) || !fake_on_device(in ? dst : src, bytes, stream->device) ||
        (in && !pinned))
        return hipErrorInvalidValue;
    struct op *op = op_new(run_copy, "copy");
    op->dst = dst;
    op->src = src;
    op->bytes = bytes;
    op->value = in; /* it is device memory that is written to */
    pthread_mutex_lock(&fake_lock);
    stream->copies |= in;
    pthread_mutex_unlock(&fake_lock);
    fake_enqueue(stream, op);
    if (!pinned)
        stream_drain(stream);
    return hipSuccess;
}

static void run_clear(struct op *op, int device)
{
    if (!fake_writable(op->dst, op->bytes, device)) {
        fake_lose(device, hipErrorIllegalAddress);
        return;
    }
    fake_delay("clear");
    memset(op->dst, op->value, op->bytes);
}

FAKE_EXPORT hipError_t hipMemsetAsync(void *dst, int value, size_t bytes, hipStream_t stream)
{
    FAKE_ENTER(stream->device);
    if (!fake_on_device(dst, bytes, stream->device))
        return hipErrorInvalidValue;
    struct op *op = op_new(run_clear, "clear");
    op->dst = dst;
    op->value = value;
    op->bytes = bytes;
    fake_enqueue(stream, op);
    return hipSuccess;
}

/* Kernels: identified by their names, and run by the CPU's plain decoders. */

FAKE_EXPORT hipError_t hipModuleLoadData(hipModule_t *ret, const void *image)
{
    FAKE_ENTER(fake_current);
    if (fake_no_binary)
        return hipErrorNoBinaryForGpu;
    if (memcmp(image, "__CLANG_OFFLOAD_BUNDLE__", 24) != 0 && memcmp(image, "\177ELF", 4) != 0)
        return hipErrorInvalidImage;
    struct ihipModule_t *module = calloc(1, sizeof(*module));
    module->device = fake_current;
    pthread_mutex_lock(&fake_lock);
    fake_live.modules++;
    pthread_mutex_unlock(&fake_lock);
    *ret = module;
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipModuleUnload(hipModule_t module)
{
    hipError_t error = fake_enter(__func__, module->device);
    while (module->symbols) {
        struct ihipModuleSymbol_t *symbol = module->symbols;
        module->symbols = symbol->next;
        free(symbol);
    }
    free(module);
    pthread_mutex_lock(&fake_lock);
    fake_live.modules--;
    pthread_mutex_unlock(&fake_lock);
    return error;
}

static const struct {
    uint32_t id;
    const char *ident;
} idents[] = {
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               {id, #ident},
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) {id, #ident},
#include "kernels/types.def"
};

/* "dequant_q4_0_f16" */
static bool symbol_parse(const char *name, struct ihipModuleSymbol_t *ret)
{
    const char *form = strrchr(name, '_');
    if (strncmp(name, "dequant_", 8) != 0 || form < name + 9)
        return false;
    const size_t n = (size_t)(form - name) - 8;
    for (size_t i = 0; i < sizeof(idents) / sizeof(idents[0]); i++)
        if (strlen(idents[i].ident) == n && memcmp(idents[i].ident, name + 8, n) == 0) {
            ret->type = tensor_type_find(idents[i].id);
            return form_parse(form + 1, &ret->form) == 0 && dequant_find_reference(idents[i].id, ret->form);
        }
    return false;
}

FAKE_EXPORT hipError_t hipModuleGetFunction(hipFunction_t *ret, hipModule_t module, const char *name)
{
    FAKE_ENTER(module->device);
    struct ihipModuleSymbol_t found = {.module = module};
    if (!symbol_parse(name, &found))
        return hipErrorNotFound;
    struct ihipModuleSymbol_t *symbol = malloc(sizeof(*symbol));
    *symbol = found;
    symbol->next = module->symbols;
    module->symbols = symbol;
    *ret = symbol;
    return hipSuccess;
}

static void run_kernel(struct op *op, int device)
{
    if (!fake_on_device(op->src, op->src_bytes, device) || !fake_writable(op->dst, op->bytes, device) ||
        !fake_writable(op->overflows, sizeof(*op->overflows), device)) {
        fake_lose(device, hipErrorIllegalAddress);
        return;
    }
    memset(op->dst, UNDER_WAY, op->bytes);
    fake_delay("kernel");
    const uint64_t overflows = op->decode(op->dst, op->src, op->blocks);
    if (overflows > 0) {
        if (__atomic_fetch_add(op->overflows, overflows, __ATOMIC_RELAXED) == op->counted)
            __atomic_store_n(op->overflowed, 1, __ATOMIC_RELEASE);
    }
}

FAKE_EXPORT hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                             unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                                             hipStream_t stream, void **params, void **extra)
{
    FAKE_ENTER(stream->device);
    (void)shared;
    if (function->module->device != stream->device)
        return hipErrorInvalidHandle;
    if (grid_x == 0 || grid_y != 1 || grid_z != 1 || block_x != DEQUANT_THREADS || block_y != 1 || block_z != 1 ||
        extra)
        return hipErrorInvalidValue;
    const struct tensor_type *type = function->type;
    struct op *op = op_new(run_kernel, "kernel");
    uint64_t blocks;
    memcpy(&op->src, params[0], sizeof(op->src));
    memcpy(&op->dst, params[1], sizeof(op->dst));
    memcpy(&blocks, params[2], sizeof(blocks));
    memcpy(&op->overflows, params[3], sizeof(op->overflows));
    memcpy(&op->counted, params[4], sizeof(op->counted));
    memcpy(&op->overflowed, params[5], sizeof(op->overflowed));
    /* A grid that is too small leaves the rest undone. */
    const uint64_t covered = (uint64_t)grid_x * DEQUANT_TILE / type->block_elements;
    op->blocks = blocks < covered ? blocks : covered;
    op->src_bytes = blocks * type->block_bytes;
    op->bytes = blocks * type->block_elements * form_element_bytes(function->form);
    op->decode = dequant_find_reference(type->id, function->form);
    fake_enqueue(stream, op);
    return hipSuccess;
}
