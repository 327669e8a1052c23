/* rocmforge-hold: starts a daemon, keeps descriptors for it, and starts it again when it dies.
 *
 * For users who run rocmforged without systemd. It does what systemd does for a service with FileDescriptorStoreMax=,
 * and speaks the same protocol: the daemon sends descriptors with their names to $NOTIFY_SOCKET, and gets them at its
 * next start as sd_listen_fds_with_names(3) says. This program never reads what the descriptors lead to. It loads no
 * library, so little in it can fail. While it lives, the models' memory is not freed. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEPT_MAX  2560          /* descriptors; as FileDescriptorStoreMax= in the unit, and STORE_MAX in the daemon */
#define NAME_MAX_ 256           /* of a descriptor's name, with its NUL */
#define NAMES_MAX (100u * 1024) /* of all names, with what separates them: execve() takes no variable of 128 KiB */

/* A daemon that ended before it was ready is started again after this pause. One that was ready is started at once:
 * its clients wait. */
#define PAUSE_SECONDS 2

static struct kept {
    int fd;
    char name[NAME_MAX_];
} kept[KEPT_MAX];
static size_t n_kept;
static size_t names_size;

static void die(const char *what)
{
    fprintf(stderr, "rocmforge-hold: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

/* A datagram socket under a name that the kernel chooses. */
static int notify_socket(char *address, size_t size)
{
    const int one = 1;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    socklen_t length = sizeof(name);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&name, sizeof(name.sun_family)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)) < 0 ||
        getsockname(fd, (struct sockaddr *)&name, &length) < 0)
        die("cannot make a socket");
    const int n = (int)(length - offsetof(struct sockaddr_un, sun_path) - 1);
    snprintf(address, size, "@%.*s", n, name.sun_path + 1);
    return fd;
}

static void keep(int fd, const char *name)
{
    const size_t size = strlen(name) + 1;
    if (n_kept == KEPT_MAX || size > NAME_MAX_ || size > NAMES_MAX - names_size || strchr(name, ':')) {
        fprintf(stderr, "rocmforge-hold: %s is not kept: there is no room\n", name);
        close(fd);
        return;
    }
    names_size += size;
    kept[n_kept].fd = fd;
    snprintf(kept[n_kept++].name, NAME_MAX_, "%s", name);
}

static void drop(const char *name)
{
    size_t left = 0;
    for (size_t i = 0; i < n_kept; i++) {
        if (strcmp(kept[i].name, name) == 0) {
            close(kept[i].fd);
            names_size -= strlen(name) + 1;
        } else
            kept[left++] = kept[i];
    }
    n_kept = left;
}

/* One message: lines of KEY=VALUE. fds: closed unless they are kept. *ready: set if the daemon says that it is. */
static void obey(char *message, const int *fds, size_t n, bool *ready)
{
    const char *name = "stored";
    bool store = false, remove = false;
    for (char *rest, *line = strtok_r(message, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        store |= strcmp(line, "FDSTORE=1") == 0;
        remove |= strcmp(line, "FDSTOREREMOVE=1") == 0;
        *ready |= strcmp(line, "READY=1") == 0;
        if (strncmp(line, "FDNAME=", 7) == 0)
            name = line + 7;
    }
    if (remove)
        drop(name);
    for (size_t i = 0; i < n; i++) {
        if (store)
            keep(fds[i], name);
        else
            close(fds[i]);
    }
}

/* Reads the messages that are there. Only the daemon's own are obeyed. */
static void listen_to(int notify, pid_t daemon, bool *ready)
{
    for (;;) {
        char message[4096];
        union {
            struct cmsghdr align;
            char room[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(253 * sizeof(int))];
        } control;
        struct iovec data = {message, sizeof(message) - 1};
        struct msghdr header = {
            .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
        const ssize_t size = recvmsg(notify, &header, MSG_CMSG_CLOEXEC);
        if (size < 0 && errno == EINTR)
            continue;
        if (size < 0)
            return;
        message[size] = '\0';
        int fds[253];
        size_t n = 0;
        struct ucred sender = {.pid = 0};
        for (struct cmsghdr *part = CMSG_FIRSTHDR(&header); part; part = CMSG_NXTHDR(&header, part)) {
            if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_CREDENTIALS)
                memcpy(&sender, CMSG_DATA(part), sizeof(sender));
            else if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
                n = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                memcpy(fds, CMSG_DATA(part), n * sizeof(int));
            }
        }
        if (sender.pid == daemon)
            obey(message, fds, n, ready);
        else
            while (n > 0)
                close(fds[--n]);
    }
}

/* In the child: gives the descriptors the numbers from 3 on, and becomes the daemon. */
static void become(char **command, const sigset_t *mask)
{
    static char names[NAMES_MAX + 1];
    char *end = names, number[24];
    /* First above the numbers that they get, so that none is closed before it was moved. */
    for (size_t i = 0; i < n_kept; i++)
        if ((kept[i].fd = fcntl(kept[i].fd, F_DUPFD_CLOEXEC, 3 + (int)n_kept)) < 0)
            die("cannot pass descriptors on");
    for (size_t i = 0; i < n_kept; i++) {
        if (dup2(kept[i].fd, 3 + (int)i) < 0)
            die("cannot pass descriptors on");
        end += sprintf(end, "%s%s", i ? ":" : "", kept[i].name);
    }
    unsetenv("LISTEN_FDS"); /* of whoever started the holder */
    if (n_kept > 0) {
        snprintf(number, sizeof(number), "%zu", n_kept);
        setenv("LISTEN_FDS", number, 1);
        setenv("LISTEN_FDNAMES", names, 1);
        snprintf(number, sizeof(number), "%d", (int)getpid());
        setenv("LISTEN_PID", number, 1);
    }
    sigprocmask(SIG_SETMASK, mask, NULL);
    execvp(command[0], command);
    die(command[0]);
}

static pid_t start(char **command, const sigset_t *mask)
{
    const pid_t daemon = fork();
    if (daemon < 0)
        die("cannot start the daemon");
    if (daemon == 0)
        become(command, mask);
    return daemon;
}

/* What was asked for by signals, and what the daemon said. */
struct run {
    bool end;     /* with the daemon */
    bool restart; /* the daemon */
    bool ready;   /* it was */
};

/* Waits until the daemon has ended. Returns its status. */
static int serve(int notify, int signals, pid_t daemon, struct run *run)
{
    for (;;) {
        struct pollfd polled[] = {{.fd = notify, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
        if (poll(polled, 2, -1) < 0 && errno != EINTR)
            die("poll");
        listen_to(notify, daemon, &run->ready);
        struct signalfd_siginfo info;
        while (read(signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
            const int signal = (int)info.ssi_signo;
            run->end |= signal == SIGTERM || signal == SIGINT;
            run->restart |= signal == SIGUSR1;
            if (signal != SIGCHLD)
                kill(daemon, signal == SIGUSR1 ? SIGTERM : signal);
        }
        int status;
        if (waitpid(daemon, &status, WNOHANG) == daemon) {
            listen_to(notify, daemon, &run->ready); /* what it had sent before */
            return status;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--") == 0) {
        argv++;
        argc--;
    }
    if (argc < 2 || argv[1][0] == '-') {
        fputs("Usage: rocmforge-hold [--] rocmforged [OPTION]...\n"
              "Starts the daemon, keeps its models' memory, and starts it again when it dies.\n"
              "Signals: USR1 starts the daemon anew; HUP is passed on; TERM and INT end both.\n",
              argc < 2 || strcmp(argv[1], "--help") ? stderr : stdout);
        return argc < 2 || strcmp(argv[1], "--help") ? 2 : EXIT_SUCCESS;
    }
    struct rlimit limit; /* the soft one is low only for programs that use select() */
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
    char address[128];
    sigset_t mask, before;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGHUP);
    sigaddset(&mask, SIGUSR1);
    sigprocmask(SIG_BLOCK, &mask, &before);
    const int signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    const int notify = notify_socket(address, sizeof(address));
    char most[16];
    snprintf(most, sizeof(most), "%d", KEPT_MAX);
    if (signals < 0 || setenv("NOTIFY_SOCKET", address, 1) < 0 || setenv("FDSTORE", most, 1) < 0)
        die("cannot start");
    for (;;) {
        struct run run = {.ready = false};
        const int status = serve(notify, signals, start(argv + 1, &before), &run);
        const bool failed = WIFSIGNALED(status) || WEXITSTATUS(status) != 0;
        /* Status 2: wrong usage, which stays wrong. */
        if (run.end || (!run.restart && (!failed || (WIFEXITED(status) && WEXITSTATUS(status) == 2))))
            return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE;
        if (!run.restart && !run.ready)
            sleep(PAUSE_SECONDS);
    }
}
