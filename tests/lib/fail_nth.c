/* Has one call fail, the Nth of its kind, in a program that is started with this in LD_PRELOAD. The file FAIL_NTH holds
 * a struct control, which the test has mapped, too. Counted are calls of the objects whose names begin with one of
 * those in FAIL_NTH_IN, a list with commas; the C library is one of them that makes some calls for others. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { MEMORY = 1, CALLS = 2 };

/* 64-bit numbers, as a test writes them. */
struct control {
    _Atomic int64_t left; /* of calls until one fails; 0: none does, or one has failed */
    int64_t kind;
    int64_t error;
};

static struct control *control;
static const char *objects;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAIL_NTH");
    objects = getenv("FAIL_NTH_IN");
    int fd = path && objects ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *memory = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory != MAP_FAILED)
        control = memory;
}

/* Whether the object that the address belongs to is in the list. */
static bool counts(const void *caller)
{
    Dl_info info;
    if (!dladdr(caller, &info) || !info.dli_fname)
        return false;
    const char *slash = strrchr(info.dli_fname, '/');
    const char *name = slash ? slash + 1 : info.dli_fname;
    for (const char *one = objects; *one;) {
        size_t n = strcspn(one, ",");
        if (n > 0 && strncmp(name, one, n) == 0)
            return true;
        one += n + (one[n] == ',');
    }
    return false;
}

/* Whether this call is the one that fails; errno is set then. */
static bool fails(enum kind kind, const void *caller)
{
    if (!control || atomic_load(&control->left) <= 0 || control->kind != (int64_t)kind || !counts(caller))
        return false;
    if (atomic_fetch_sub(&control->left, 1) != 1)
        return false;
    errno = (int)control->error;
    return true;
}

/* The function that this one stands before. */
#define REAL(name)                                                                                                     \
    static __typeof__(&(name)) real;                                                                                   \
    if (!real)                                                                                                         \
    real = (__typeof__(real))dlsym(RTLD_NEXT, #name)

#define FAILS(kind) fails(kind, __builtin_return_address(0))

void *malloc(size_t size)
{
    REAL(malloc);
    return FAILS(MEMORY) ? NULL : real(size);
}

void *calloc(size_t n, size_t size)
{
    REAL(calloc);
    return FAILS(MEMORY) ? NULL : real(n, size);
}

void *realloc(void *memory, size_t size)
{
    REAL(realloc);
    return FAILS(MEMORY) ? NULL : real(memory, size);
}

void *reallocarray(void *memory, size_t n, size_t size)
{
    REAL(reallocarray);
    return FAILS(MEMORY) ? NULL : real(memory, n, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    REAL(aligned_alloc);
    return FAILS(MEMORY) ? NULL : real(alignment, size);
}

/* System calls of what a load, an attachment and a verification do. Those of sockets are not among them: a connection
 * ends then, as it should. */

int memfd_create(const char *name, unsigned flags)
{
    REAL(memfd_create);
    return FAILS(CALLS) ? -1 : real(name, flags);
}

int ftruncate64(int fd, off64_t size)
{
    REAL(ftruncate64);
    return FAILS(CALLS) ? -1 : real(fd, size);
}

ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset)
{
    REAL(pread64);
    return FAILS(CALLS) ? -1 : real(fd, buffer, size, offset);
}

ssize_t pwrite64(int fd, const void *buffer, size_t size, off64_t offset)
{
    REAL(pwrite64);
    return FAILS(CALLS) ? -1 : real(fd, buffer, size, offset);
}

void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t offset)
{
    REAL(mmap64);
    return FAILS(CALLS) ? MAP_FAILED : real(address, size, protection, flags, fd, offset);
}

int fstat64(int fd, struct stat64 *stat)
{
    REAL(fstat64);
    return FAILS(CALLS) ? -1 : real(fd, stat);
}

int fchmod(int fd, mode_t mode)
{
    REAL(fchmod);
    return FAILS(CALLS) ? -1 : real(fd, mode);
}

int fcntl64(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    REAL(fcntl64);
    return FAILS(CALLS) ? -1 : real(fd, command, argument);
}
