#include "tests/gpu/rig.h"

#include "kernels/dequant.h"

#include <dlfcn.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* Tensors begin at multiples of these in a file, and in an arena. */
#define FILE_ALIGNMENT  32u
#define ARENA_ALIGNMENT 256u

/* How often a session is repeated if it did not make the call that was to fail: some calls are not made equally
 * often each time. */
#define SWEEP_TRIES 5

int rig_load(struct rig *ret)
{
    const char *path = getenv("ROCMFORGE_TEST_MODULE");
    void *handle = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!handle) {
        fprintf(stderr, "ROCMFORGE_TEST_MODULE: %s\n", path ? dlerror() : "not set");
        return -ENOENT;
    }
    *ret = (struct rig){.module = dlsym(handle, DEVICE_MODULE_SYMBOL)};
    rig_find_fake(ret, handle);
    if (ret->module && ret->module->abi == DEVICE_ABI)
        return 0;
    fprintf(stderr, "%s: no module of this version\n", path);
    return -ENOENT;
}

enum export_wish rig_export_wish(void)
{
    const char *wish = getenv("ROCMFORGE_TEST_EXPORT");
    return !wish || !*wish ? EXPORT_WISH_AUTO : strcmp(wish, "fd") == 0 ? EXPORT_WISH_FD : EXPORT_WISH_IPC;
}

void rig_find_fake(struct rig *rig, void *object)
{
    *(void **)&rig->inject = dlsym(object, "fake_hip_fail");
    *(void **)&rig->fired = dlsym(object, "fake_hip_fired");
    *(void **)&rig->copies_delayed = dlsym(object, "fake_hip_copies_delayed");
    *(void **)&rig->call = dlsym(object, "fake_hip_call");
    *(void **)&rig->count = dlsym(object, "fake_hip_count");
}

unsigned long rig_calls(const struct rig *rig, const char *name)
{
    const char *made;
    unsigned long calls = 0;
    for (unsigned i = 0; rig->call(i, &made, &calls); i++)
        if (strcmp(made, name) == 0)
            return calls;
    return 0;
}

/* Fails the test unless each call that the object uses was made. */
static void check_complete(const struct rig *rig, const char *path)
{
    char command[512], line[256];
    snprintf(command, sizeof(command), "nm -D --undefined-only '%s'", path);
    FILE *symbols = popen(command, "r");
    unsigned n = 0;
    while (fgets(line, sizeof(line), symbols)) {
        char name[128];
        if (sscanf(line, " U %127[A-Za-z0-9_]", name) != 1 || strncmp(name, "hip", 3) != 0 ||
            strcmp(name, "hipGetErrorString") == 0)
            continue;
        if (rig_calls(rig, name) == 0)
            fail_msg("%s was not called", name);
        n++;
    }
    assert_int_equal(pclose(symbols), 0);
    assert_true(n > 0);
}

void rig_sweep(const struct rig *rig, const char *path, const char *code, bool (*session)(const char *spec))
{
    struct {
        const char *name;
        unsigned long calls;
    } made[FAKE_CALLS_MAX];
    unsigned n = 0;
    unsigned long total = 0;
    rig->inject(NULL);
    session(NULL);
    while (n < FAKE_CALLS_MAX && rig->call(n, &made[n].name, &made[n].calls))
        n++;
    check_complete(rig, path);
    /* Some calls poll, so how often they are made depends on time: take the smallest number. */
    for (unsigned again = 0; again < 3; again++) {
        rig->inject(NULL);
        session(NULL);
        for (unsigned i = 0; i < n; i++) {
            const unsigned long calls = rig_calls(rig, made[i].name);
            made[i].calls = calls < made[i].calls ? calls : made[i].calls;
        }
    }
    for (unsigned i = 0; i < n; i++)
        total += made[i].calls;
    for (unsigned i = 0; i < n; i++)
        for (unsigned long nth = 1; nth <= made[i].calls; nth++) {
            char spec[96];
            bool fired = false;
            snprintf(spec, sizeof(spec), "%s:%lu:%s", made[i].name, nth, code);
            for (unsigned try = 0; try < SWEEP_TRIES && !fired; try++) {
                rig->inject(spec);
                fired = session(spec);
            }
            rig->inject(NULL);
            if (!fired)
                fail_msg("%s: it is not called so often any more", spec);
        }
    print_message("%lu calls, each made to fail with %s\n", total, code);
}

uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t align(uint64_t offset, uint64_t alignment)
{
    return (offset + alignment - 1) / alignment * alignment;
}

/* Random bytes, with runs of zeros and of ones in them: infinities, NaNs and the limits of ranges. */
static void fill_random(uint8_t *data, size_t bytes, uint64_t *seed)
{
    for (size_t i = 0; i < bytes; i++) {
        if (i % 512 == 0 && random_next(seed) % 8 == 0) {
            const size_t n = bytes - i < 64 ? bytes - i : 64;
            memset(data + i, random_next(seed) % 2 ? 0xff : 0, n);
            i += n - 1;
            continue;
        }
        data[i] = (uint8_t)(random_next(seed) >> 24);
    }
}

void model_make(struct model *ret, const struct chunk_part *parts, size_t n, unsigned skew, uint64_t seed)
{
    *ret = (struct model){.pieces = calloc(n, sizeof(struct piece)), .n_pieces = n};
    uint64_t arena_end = 0;
    for (size_t i = 0; i < n; i++) {
        struct piece *piece = &ret->pieces[i];
        const struct tensor_type *type = parts[i].type;
        piece->type = type;
        piece->form = parts[i].form;
        piece->slot_offset = align(ret->file_bytes, FILE_ALIGNMENT) + skew;
        piece->slot_bytes = parts[i].blocks * type->block_bytes;
        piece->arena_offset = align(arena_end, ARENA_ALIGNMENT);
        piece->arena_bytes = parts[i].form == FORM_NATIVE
                                 ? piece->slot_bytes
                                 : parts[i].blocks * type->block_elements * form_element_bytes(parts[i].form);
        ret->file_bytes = piece->slot_offset + piece->slot_bytes;
        arena_end = piece->arena_offset + piece->arena_bytes;
    }
    ret->arena_bytes = align(arena_end, ARENA_ALIGNMENT) + ARENA_ALIGNMENT;
    ret->file = calloc(1, ret->file_bytes);
    ret->expected = calloc(1, ret->arena_bytes);
    seed |= 1;
    fill_random(ret->file, ret->file_bytes, &seed);
    for (size_t i = 0; i < n; i++) {
        const struct piece *piece = &ret->pieces[i];
        uint8_t *dst = ret->expected + piece->arena_offset;
        const uint8_t *src = ret->file + piece->slot_offset;
        if (piece->form == FORM_NATIVE)
            memcpy(dst, src, piece->slot_bytes);
        else
            ret->overflows += dequant_find_reference(piece->type->id, piece->form)(dst, src, parts[i].blocks);
    }
}

void model_drop(struct model *model)
{
    free(model->pieces);
    free(model->file);
    free(model->expected);
}

int arena_make(struct device *device, uint64_t bytes, struct arena **ret, struct device_fault *ret_fault)
{
    const struct extent all = {.bytes = bytes};
    return device->ops->arena_new(device, bytes, &all, 1, ret, ret_fault);
}

int slots_make(struct slots *ret, struct device *device, size_t n, struct device_fault *ret_fault)
{
    *ret = (struct slots){
        .device = device,
        .slots = calloc(n, sizeof(struct slot)),
        .free = calloc(n, sizeof(struct slot *)),
    };
    pthread_mutex_init(&ret->lock, NULL);
    pthread_cond_init(&ret->changed, NULL);
    for (size_t i = 0; i < n; i++) {
        struct slot *slot = &ret->slots[i];
        slot->device = device;
        slot->size = device->slot_bytes;
        int r = device->ops->slot_init(device, slot, ret_fault);
        if (r < 0) {
            slots_drop(ret);
            return r;
        }
        ret->n++;
        ret->free[ret->n_free++] = slot;
    }
    return 0;
}

void slots_drop(struct slots *slots)
{
    assert_int_equal(slots->n_free, slots->n);
    for (size_t i = 0; i < slots->n; i++)
        slots->device->ops->slot_fini(slots->device, &slots->slots[i]);
    free(slots->slots);
    free(slots->free);
    pthread_mutex_destroy(&slots->lock);
    pthread_cond_destroy(&slots->changed);
}

/* A transfer, and what it belongs to. */
struct put {
    struct transfer transfer;
    struct slots *slots;
    struct outcome *outcome;
    struct piece *pieces;
    int calls;
};

static void put_done(struct transfer *transfer)
{
    struct put *put = (struct put *)transfer;
    struct slots *slots = put->slots;
    struct outcome *outcome = put->outcome;
    /* As the daemon does: fill the slot again at once. */
    memset(transfer->slot->data, 0x77, transfer->slot->size < 4096 ? transfer->slot->size : 4096);
    pthread_mutex_lock(&slots->lock);
    put->calls++;
    if (put->calls != 1 || transfer->end_ns < transfer->begin_ns)
        abort();
    if (transfer->status < 0 && outcome->status == 0) {
        outcome->status = transfer->status;
        outcome->fault = transfer->fault;
    }
    outcome->overflows += transfer->overflows;
    outcome->copy_ns += transfer->copy_ns;
    outcome->kernel_ns += transfer->kernel_ns;
    slots->free[slots->n_free++] = transfer->slot;
    pthread_cond_signal(&slots->changed);
    pthread_mutex_unlock(&slots->lock);
}

static struct slot *slot_wait(struct slots *slots)
{
    pthread_mutex_lock(&slots->lock);
    while (slots->n_free == 0)
        pthread_cond_wait(&slots->changed, &slots->lock);
    /* The slot that was given back last: if the device still used it, the test would see that. */
    struct slot *slot = slots->free[--slots->n_free];
    pthread_mutex_unlock(&slots->lock);
    return slot;
}

/* Fills the slot with as many blocks of the model as fit, from block `*block` of piece `*piece` on. */
static size_t fill(const struct model *model, size_t *piece, uint64_t *block, struct slot *slot, size_t slot_bytes,
                   bool decode, struct piece *ret)
{
    size_t n = 0;
    uint64_t used = model->pieces[*piece].slot_offset % FILE_ALIGNMENT;
    while (*piece < model->n_pieces) {
        const struct piece *whole = &model->pieces[*piece];
        const uint64_t blocks = whole->slot_bytes / whole->type->block_bytes;
        const uint64_t arena_block = whole->arena_bytes / blocks;
        const uint64_t slot_block = decode ? whole->type->block_bytes : arena_block;
        if (n > 0)
            used = align(used, FILE_ALIGNMENT) + whole->slot_offset % FILE_ALIGNMENT;
        if (used + slot_block > slot_bytes)
            break;
        uint64_t take = (slot_bytes - used) / slot_block;
        if (take > blocks - *block)
            take = blocks - *block;
        ret[n] = *whole;
        ret[n].slot_offset = used;
        ret[n].slot_bytes = take * slot_block;
        ret[n].arena_offset = whole->arena_offset + *block * arena_block;
        ret[n].arena_bytes = take * arena_block;
        const uint8_t *from =
            decode ? model->file + whole->slot_offset + *block * slot_block : model->expected + ret[n].arena_offset;
        memcpy((uint8_t *)slot->data + used, from, ret[n].slot_bytes);
        used += ret[n++].slot_bytes;
        *block += take;
        if (*block < blocks)
            break;
        *block = 0;
        (*piece)++;
    }
    return n;
}

void model_put(const struct model *model, struct slots *slots, struct arena *arena, size_t slot_bytes, bool decode,
               struct outcome *ret)
{
    *ret = (struct outcome){0};
    struct put **puts = NULL;
    size_t piece = 0;
    uint64_t block = 0;
    while (piece < model->n_pieces) {
        struct put *put = calloc(1, sizeof(*put));
        puts = realloc(puts, (ret->transfers + 1) * sizeof(struct put *));
        puts[ret->transfers++] = put;
        struct slot *slot = slot_wait(slots);
        put->slots = slots;
        put->outcome = ret;
        put->pieces = calloc(model->n_pieces, sizeof(struct piece));
        put->transfer = (struct transfer){.arena = arena, .slot = slot, .pieces = put->pieces, .decode = decode};
        put->transfer.done = put_done;
        put->transfer.n_pieces = fill(model, &piece, &block, slot, slot_bytes, decode, put->pieces);
        assert_true(put->transfer.n_pieces > 0);
        slots->device->ops->put(slots->device, &put->transfer);
    }
    pthread_mutex_lock(&slots->lock);
    while (slots->n_free < slots->n)
        pthread_cond_wait(&slots->changed, &slots->lock);
    pthread_mutex_unlock(&slots->lock);
    for (size_t i = 0; i < ret->transfers; i++) {
        assert_int_equal(puts[i]->calls, 1);
        free(puts[i]->pieces);
        free(puts[i]);
    }
    free(puts);
}

/* The sign and payload of a computed NaN depend on the processor. A NaN from the file keeps its own, but is made
 * quiet. */
static bool both_nan(const struct piece *piece, const uint8_t *got, const uint8_t *want)
{
    uint32_t bits[2] = {0, 0};
    const bool wide = piece->form == FORM_F32;
    memcpy(&bits[0], got, wide ? 4 : 2);
    memcpy(&bits[1], want, wide ? 4 : 2);
    const uint32_t infinity = wide ? 0x7f800000 : piece->form == FORM_F16 ? 0x7c00 : 0x7f80;
    const uint32_t magnitude = wide ? 0x7fffffff : 0x7fff;
    return (bits[0] & magnitude) > infinity && (bits[1] & magnitude) > infinity;
}

static bool nan_computed(const struct tensor_type *type)
{
    return type->kind == TYPE_QUANTISED || strcmp(type->name, "f64") == 0;
}

/* The piece that contains this byte of the arena, or NULL. */
static const struct piece *piece_at(const struct model *model, uint64_t at)
{
    for (size_t i = 0; i < model->n_pieces; i++) {
        const struct piece *piece = &model->pieces[i];
        if (at >= piece->arena_offset && at < piece->arena_offset + piece->arena_bytes)
            return piece;
    }
    return NULL;
}

static bool same(const struct model *model, const uint8_t *got, uint64_t at)
{
    if (got[at] == model->expected[at])
        return true;
    const struct piece *piece = piece_at(model, at);
    if (!piece || piece->form == FORM_NATIVE || !nan_computed(piece->type))
        return false;
    const uint64_t element = at - (at - piece->arena_offset) % form_element_bytes(piece->form);
    return both_nan(piece, got + element, model->expected + element);
}

bool model_same(const struct model *model, const uint8_t *got)
{
    for (uint64_t i = 0; i < model->arena_bytes; i++)
        if (!same(model, got, i))
            return false;
    return true;
}

static void tell_difference(const struct model *model, const uint8_t *got, uint64_t at)
{
    const struct piece *piece = piece_at(model, at);
    if (piece)
        fail_msg("%s as %s: byte %llu of %llu is %02x, not %02x", piece->type->name, form_name(piece->form),
                 (unsigned long long)(at - piece->arena_offset), (unsigned long long)piece->arena_bytes, got[at],
                 model->expected[at]);
    fail_msg("byte %llu, between tensors, is %02x, not 00", (unsigned long long)at, got[at]);
}

int model_check(const struct model *model, struct device *device, struct arena *arena, struct device_fault *ret_fault)
{
    uint8_t *got = malloc(model->arena_bytes);
    memset(got, 0x55, model->arena_bytes);
    int r = device->ops->arena_read(arena, 0, got, model->arena_bytes, ret_fault);
    for (uint64_t i = 0; r == 0 && i < model->arena_bytes; i++)
        if (!same(model, got, i))
            tell_difference(model, got, i);
    free(got);
    return r;
}
