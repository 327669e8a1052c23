/* Fuzzes the whole daemon but main(): four clients talk to it at the same time, send descriptors, close, and open anew;
 * then the daemon ends, whatever it was doing. It has to end, with nothing left open.
 *
 * The input is a row of steps. A step is a byte and what belongs to it: the low two bits say which client it is, the
 * next two which descriptor goes beside what is sent (none, a model, another model, something else), the upper four
 * what is done:
 *
 *     0 to 9   sends: two bytes, the lower one first, say how many bytes of the input follow that are sent. A byte of
 * 128 or more is not sent; the word of that number in `words` is. 10, 11   sends the same, and a NUL byte 12 closes the
 * connection and opens another one 13       the loop runs until no job is under way 14       reads what the daemon has
 * answered 15       closes the sending side
 *
 * After each step the loop runs once. */
#include "daemon/modules.h"
#include "daemon/server.h"
#include "proto/frame.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CLIENTS = 4, SEND_MAX = 4096, FILES = 3 };

static const char *const words[] = {
    "{\"method\":\"io.rocmforge.",
    "\",\"parameters\":{",
    "}}",
    "}",
    "{",
    "\"",
    "\":",
    ",",
    "[",
    "]",
    "true",
    "false",
    "null",
    "\"more\":true",
    "\"oneway\":true",
    "Load",
    "Plan",
    "AddFiles",
    "Unload",
    "Cancel",
    "Pin",
    "Unpin",
    "SetTtl",
    "List",
    "Show",
    "Attach",
    "Detach",
    "Verify",
    "Devices",
    "Status",
    "Watch",
    "\"fds\":[0]",
    "\"fds\":[0,1]",
    "\"added\":1",
    "\"name\":\"a\"",
    "\"name\":\"b\"",
    "\"name\":\"a#1\"",
    "\"form\":\"f32\"",
    "\"form\":\"native\"",
    "\"forms\":[{\"match\":\"*\",\"form\":\"f16\"}]",
    "\"device\":\"host\"",
    "\"dequant\":\"cpu\"",
    "\"wait\":false",
    "\"waitForMemory\":1",
    "\"lease\":true",
    "\"table\":true",
    "\"header\":true",
    "\"pin\":true",
    "\"ttl\":0",
    "\"private\":true",
    "\"public\":true",
    "\"replace\":true",
    "\"deadline\":0.001",
    "\"trace\":true",
    "\"force\":true",
    "\"lease\":1",
    "{\"method\":\"org.varlink.service.GetInfo\"}",
    "{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"io.rocmforge\"}}",
    "\"layout\":\"vllm\"",
    "\"layout\":\"hf\"",
    "\"groups\":[{\"name\":\"g\",\"members\":[\"t\"],\"stack\":1}]",
    "\"groups\":[{\"name\":\"t\",\"members\":[\"t\"],\"cut\":\"rows\",\"heads\":2}]",
    "\"tp\":{\"rank\":1,\"size\":2}",
};

struct rig {
    uv_loop_t loop;
    struct server server;
    bool stopped;
    int clients[CLIENTS]; /* -1: it could not be opened */
};

/* Files that clients send. They stay for all inputs. */
static int files[FILES];

/* A model of one tensor of `n` elements of f32, or of q4_0 in blocks of 32. */
static int model_file(uint32_t type, uint64_t n, size_t bytes)
{
    const struct __attribute__((packed)) {
        char magic[4];
        uint32_t version;
        uint64_t n_tensors, n_kv, name_size;
        char name;
        uint32_t n_dims;
        uint64_t shape;
        uint32_t type;
        uint64_t offset;
    } header = {{'G', 'G', 'U', 'F'}, 3, 1, 0, 1, 't', 1, n, type, 0};
    const size_t start = (sizeof(header) + 31) / 32 * 32;
    int fd = memfd_create("model", MFD_CLOEXEC);
    assert(fd >= 0 && ftruncate(fd, (off_t)(start + bytes)) == 0);
    assert(pwrite(fd, &header, sizeof(header), 0) == sizeof(header));
    return fd;
}

static void prepare(void)
{
    static bool prepared;
    if (prepared)
        return;
    prepared = true;
    signal(SIGPIPE, SIG_IGN);
    setenv("UV_THREADPOOL_SIZE", "2", 1);
    log_set_level(LOG_LEVEL_ERROR);
    files[0] = model_file(0, 4096, 16384);
    files[1] = model_file(2, 4096, 2304);
    files[2] = memfd_create("no model", MFD_CLOEXEC);
    assert(files[2] >= 0);
}

/* The lowest number that no descriptor has. */
static int lowest_free(void)
{
    int fd = dup(STDERR_FILENO);
    assert(fd >= 0);
    close(fd);
    return fd;
}

static void client_open(struct rig *rig, size_t i)
{
    int ends[2];
    assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
    assert(conn_open(rig->server.conns, ends[1]) == 0);
    rig->clients[i] = ends[0];
}

static void rig_begin(struct rig *rig)
{
    const struct options options = {
        .device = "host",
        .budget = {.set = true, .bytes = 8u << 20},
        .limits = QUOTA_DEFAULTS,
    };
    assert(uv_loop_init(&rig->loop) == 0);
    const struct server_config config = {.limits = options.limits, .workers = 2};
    assert(server_init(&rig->server, &rig->loop, &config) == 0);
    assert(workers_begin(rig->server.core.queue, config.workers) == 0);
    assert(modules_open_host(&rig->server.devices, &options, 2) == 0);
    for (size_t i = 0; i < CLIENTS; i++)
        client_open(rig, i);
}

/* Each answer is an object. The descriptors beside it are closed. */
static void client_read(int client)
{
    struct frame_reader *reader;
    struct frame_message message;
    assert(frame_reader_new(CONN_QUEUE_MAX, &reader) == 0);
    while (frame_reader_fill(reader, client) == 1) {
        while (frame_reader_next(reader, &message) == 1)
            assert(message.size == 0 || strchr(message.text, '}'));
    }
    frame_reader_free(reader);
}

static void client_send(int client, unsigned file, const char *text, size_t size)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)text, .iov_len = size};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (file > 0) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &files[file - 1], sizeof(int));
    }
    (void)!sendmsg(client, &header, MSG_NOSIGNAL); /* the daemon may have closed it, or not have read enough */
}

/* Puts the words in. Returns how many bytes of *text are used. */
static size_t spell(const uint8_t *data, size_t size, char text[SEND_MAX])
{
    size_t used = 0;
    for (size_t i = 0; i < size; i++) {
        const char byte = (char)data[i];
        const char *piece = data[i] < 128 ? &byte : words[(data[i] - 128u) % (sizeof(words) / sizeof(*words))];
        const size_t n = data[i] < 128 ? 1 : strlen(piece);
        if (used + n >= SEND_MAX)
            break;
        memcpy(text + used, piece, n);
        used += n;
    }
    return used;
}

/* Does one step and returns how many bytes of the input it took. */
static size_t step(struct rig *rig, const uint8_t *data, size_t size)
{
    const unsigned what = data[0] >> 4, file = data[0] >> 2 & 3;
    int *client = &rig->clients[data[0] & 3];
    if (what == 12) {
        close(*client);
        client_open(rig, data[0] & 3);
    } else if (what == 13) {
        while (rig->server.core.n_jobs > 0)
            uv_run(&rig->loop, UV_RUN_ONCE);
    } else if (what == 14) {
        client_read(*client);
    } else if (what == 15) {
        shutdown(*client, SHUT_WR);
    }
    if (what >= 12 || size < 3)
        return 1;
    char text[SEND_MAX + 1];
    size_t n = data[1] | (size_t)data[2] << 8;
    n = n < size - 3 ? n : size - 3;
    size_t used = spell(data + 3, n, text);
    if (what >= 10)
        text[used++] = 0;
    if (used > 0)
        client_send(*client, file, text, used);
    return 3 + n;
}

static void rig_stopped(struct server *server)
{
    struct rig *rig = (struct rig *)((char *)server - offsetof(struct rig, server));
    rig->stopped = true;
}

static void rig_end(struct rig *rig)
{
    server_stop(&rig->server, rig_stopped);
    uv_run(&rig->loop, UV_RUN_DEFAULT);
    assert(rig->stopped);
    assert(uv_loop_close(&rig->loop) == 0);
    for (size_t i = 0; i < CLIENTS; i++) {
        client_read(rig->clients[i]);
        close(rig->clients[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct rig rig;
    static bool warm; /* the first loop of a process opens what stays open */
    prepare();
    for (bool again = true; again;) {
        const int lowest = lowest_free();
        memset(&rig, 0, sizeof(rig));
        rig_begin(&rig);
        for (size_t at = 0; at < size; uv_run(&rig.loop, UV_RUN_NOWAIT))
            at += step(&rig, data + at, size - at);
        rig_end(&rig);
        assert(!warm || lowest_free() == lowest); /* nothing was left open */
        again = !warm;
        warm = true;
    }
    return 0;
}
