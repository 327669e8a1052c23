/* Settings, devices and faults. */
#include "tests/fake_hip/internal.h"

#include <hip/hip_version.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct fake_hip_live fake_live;
pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t fake_changed = PTHREAD_COND_INITIALIZER;
__thread int fake_current;
__thread int fake_waited_for = -1;
__thread hipError_t fake_last;
uint64_t fake_memory = (uint64_t)1 << 30;
uint64_t fake_used[FAKE_DEVICES_MAX];
bool fake_no_binary;
bool fake_leak;
bool fake_own_only;
bool fake_no_share, fake_no_read_only;
size_t fake_granularity;
int fake_version = HIP_VERSION;

static int devices = 1;
static bool no_device_is_no_error, nameless, texts_are_names;
static hipError_t lost[FAKE_DEVICES_MAX];
static uint64_t delay_copy, delay_kernel, delay_clear, delay_info, seed = 1;
static const char *uuid_begin = "fa4e";
static const char *gate, *hang; /* NULL: no gate; nothing hangs */

static struct {
    char call[48]; /* "": no fault is set */
    unsigned long nth, seen;
    bool from_there_on;
    int code; /* 0: use the default */
    bool harmless;
    bool fired;
} fault;

static const char *fault_path; /* NULL: no file */
static struct timespec fault_time;

static struct {
    const char *name;
    unsigned long n;
} calls[FAKE_CALLS_MAX];

static struct {
    int device; /* -1: no capture */
    bool broken;
} capture = {.device = -1};
static __thread hipStreamCaptureMode capture_mode = hipStreamCaptureModeGlobal;

static const char *held; /* the call that waits; NULL: none */

static pid_t pid;

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void setting_fail(const char *spec)
{
    memset(&fault, 0, sizeof(fault));
    memset(lost, 0, sizeof(lost));
    for (unsigned i = 0; i < FAKE_CALLS_MAX; i++)
        calls[i].n = 0;
    if (!spec || !*spec)
        return;
    char plus = 0;
    if (sscanf(spec, "%47[^:]:%lu%c", fault.call, &fault.nth, &plus) < 2) {
        fprintf(stderr, "fake_hip: not a fault: %s\n", spec);
        abort();
    }
    fault.from_there_on = plus == '+';
    const char *code = strchr(strchr(spec, ':') + 1, ':');
    if (code)
        fault.code = atoi(code + 1);
    fault.harmless = code && strchr(code, '!');
}

/* With fake_lock held. */
static void setting_fail_read(void)
{
    struct stat status;
    char spec[96];
    if (stat(fault_path, &status) < 0) {
        if (!fault.fired)
            fault.call[0] = '\0';
        return;
    }
    if (memcmp(&status.st_mtim, &fault_time, sizeof(fault_time)) == 0)
        return;
    fault_time = status.st_mtim;
    FILE *file = fopen(fault_path, "r");
    setting_fail(file ? fgets(spec, sizeof(spec), file) : NULL);
    if (file)
        fclose(file);
}

static uint64_t slow(const char *text, const char *what)
{
    const char *at = strstr(text, what);
    return at && at[strlen(what)] == '=' ? strtoull(at + strlen(what) + 1, NULL, 10) : 0;
}

static void settings_read(void)
{
    const char *text;
    if ((text = getenv("FAKE_HIP_DEVICES")))
        devices = atoi(text);
    no_device_is_no_error = devices < 0;
    if (devices < 0)
        devices = 0;
    if (devices > FAKE_DEVICES_MAX)
        devices = FAKE_DEVICES_MAX;
    if ((text = getenv("FAKE_HIP_MEMORY")))
        fake_memory = strtoull(text, NULL, 10);
    if ((text = getenv("FAKE_HIP_SLOW"))) {
        delay_copy = slow(text, "copy");
        delay_kernel = slow(text, "kernel");
        delay_clear = slow(text, "clear");
        delay_info = slow(text, "info");
        usleep((useconds_t)slow(text, "start"));
    }
    if ((text = getenv("FAKE_HIP_UUID")))
        uuid_begin = text;
    if ((text = getenv("FAKE_HIP_SEED")))
        seed = strtoull(text, NULL, 10) | 1;
    if ((text = getenv("FAKE_HIP_TAKEN")))
        fake_used[0] = strtoull(text, NULL, 10);
    gate = getenv("FAKE_HIP_GATE");
    hang = getenv("FAKE_HIP_HANG");
    fake_no_binary = getenv("FAKE_HIP_NO_BINARY") != NULL;
    fake_leak = getenv("FAKE_HIP_LEAK") != NULL;
    fake_own_only = getenv("FAKE_HIP_OWN_ONLY") != NULL;
    fake_no_share = getenv("FAKE_HIP_NO_VMM") != NULL;
    fake_no_read_only = getenv("FAKE_HIP_NO_READ_ONLY") != NULL;
    if ((text = getenv("FAKE_HIP_GRANULARITY")))
        fake_granularity = strtoull(text, NULL, 10);
    if ((text = getenv("FAKE_HIP_VERSION")))
        fake_version = atoi(text);
    nameless = getenv("FAKE_HIP_NAMELESS") != NULL;
    text = getenv("FAKE_HIP_TEXTS");
    texts_are_names = text && strcmp(text, "names") == 0;
    pid = getpid();
    text = getenv("FAKE_HIP_FAIL");
    if (text && *text == '@')
        fault_path = text + 1;
    else
        setting_fail(text);
}

static bool unrecoverable(int code)
{
    return code == 100 || code == 214 || code == 700 || code == 702 || code == 709 || code == 710 ||
           (code >= 714 && code <= 719);
}

/* Whether this call or work is the one that has to fail. With fake_lock held. */
static bool due(const char *what, bool is_call)
{
    if (fault_path)
        setting_fail_read();
    if (!fault.call[0] || (strcmp(fault.call, what) != 0 && !(is_call && strcmp(fault.call, "*") == 0)))
        return false;
    fault.seen++;
    if (fault.seen != fault.nth && !(fault.from_there_on && fault.seen > fault.nth))
        return false;
    fault.fired = true;
    if (fault_path) {
        unlink(fault_path);
        memset(&fault_time, 0, sizeof(fault_time)); /* the next file counts as new */
    }
    return true;
}

/* With fake_lock held. */
static void count(const char *call)
{
    unsigned i = 0;
    while (calls[i].name && strcmp(calls[i].name, call) != 0)
        if (++i == FAKE_CALLS_MAX)
            abort();
    calls[i].name = call;
    calls[i].n++;
}

/* Whether the file says that this call is to hang. */
static bool hangs(const char *call, int device)
{
    char text[128], wanted[128];
    FILE *file = fopen(hang, "re");
    if (!file)
        return false;
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    snprintf(wanted, sizeof(wanted), "%s %d", call, device >= 0 ? device : fake_current);
    return strcmp(text, wanted) == 0;
}

hipError_t fake_enter(const char *call, int device)
{
    pthread_once(&once, settings_read);
    while (hang && hangs(call, device))
        nanosleep(&(const struct timespec){.tv_nsec = 10000000}, NULL);
    pthread_mutex_lock(&fake_lock);
    hipError_t error = hipSuccess;
    fake_waited_for = -1;
    const bool fails = due(call, true);
    count(call);
    while (held && strcmp(held, call) == 0)
        pthread_cond_wait(&fake_changed, &fake_lock);
    if (getpid() != pid) {
        error = hipErrorNotInitialized;
    } else if (fails) {
        error = fault.code ? (hipError_t)fault.code : hipErrorUnknown;
        int whose = device >= 0 ? device : fake_current;
        if (unrecoverable((int)error) && !fault.harmless && lost[whose] == hipSuccess) {
            lost[whose] = error;
            pthread_cond_broadcast(&fake_changed);
        }
    } else if (device >= 0) {
        error = lost[device];
    }
    if (error != hipSuccess)
        fake_last = error;
    pthread_mutex_unlock(&fake_lock);
    return error;
}

hipError_t fake_capture(int device, bool whole)
{
    pthread_mutex_lock(&fake_lock);
    hipError_t error = hipSuccess;
    if (capture.device == device && (whole || capture_mode != hipStreamCaptureModeRelaxed)) {
        capture.broken = true;
        fake_last = error = hipErrorStreamCaptureUnsupported;
    }
    pthread_mutex_unlock(&fake_lock);
    return error;
}

void fake_touch(int device)
{
    pthread_mutex_lock(&fake_lock);
    fake_live.contexts |= 1u << device;
    pthread_mutex_unlock(&fake_lock);
}

bool fake_work(const char *what, int device)
{
    pthread_mutex_lock(&fake_lock);
    if (lost[device] == hipSuccess && due(what, false)) {
        lost[device] = fault.code ? (hipError_t)fault.code : hipErrorLaunchFailure;
        pthread_cond_broadcast(&fake_changed);
    }
    bool fine = lost[device] == hipSuccess;
    pthread_mutex_unlock(&fake_lock);
    return fine;
}

void fake_lose(int device, hipError_t code)
{
    pthread_mutex_lock(&fake_lock);
    if (lost[device] == hipSuccess)
        lost[device] = code;
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
}

hipError_t fake_lost(int device)
{
    pthread_mutex_lock(&fake_lock);
    hipError_t error = lost[device];
    pthread_mutex_unlock(&fake_lock);
    return error;
}

static void sleep_us(uint64_t us)
{
    const struct timespec time = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    nanosleep(&time, NULL);
}

void fake_delay_info(void)
{
    if (delay_info > 0)
        sleep_us(delay_info);
}

void fake_delay(const char *what)
{
    const uint64_t most = *what == 'k' ? delay_kernel : what[1] == 'o' ? delay_copy : delay_clear;
    if (most == 0)
        return;
    pthread_mutex_lock(&fake_lock);
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    const uint64_t us = seed % (most + 1);
    pthread_mutex_unlock(&fake_lock);
    sleep_us(us);
}

void fake_gate(void)
{
    while (gate && access(gate, F_OK) == 0)
        nanosleep(&(const struct timespec){.tv_nsec = 1000000}, NULL);
}

FAKE_EXPORT void fake_hip_fail(const char *spec)
{
    pthread_once(&once, settings_read);
    pthread_mutex_lock(&fake_lock);
    setting_fail(spec);
    pthread_mutex_unlock(&fake_lock);
}

FAKE_EXPORT bool fake_hip_fired(void)
{
    pthread_mutex_lock(&fake_lock);
    bool fired = fault.fired;
    pthread_mutex_unlock(&fake_lock);
    return fired;
}

FAKE_EXPORT bool fake_hip_call(unsigned index, const char **ret_name, unsigned long *ret_calls)
{
    pthread_mutex_lock(&fake_lock);
    const bool is = index < FAKE_CALLS_MAX && calls[index].name;
    if (is) {
        *ret_name = calls[index].name;
        *ret_calls = calls[index].n;
    }
    pthread_mutex_unlock(&fake_lock);
    return is;
}

FAKE_EXPORT void fake_hip_count(struct fake_hip_live *ret)
{
    pthread_mutex_lock(&fake_lock);
    *ret = fake_live;
    pthread_mutex_unlock(&fake_lock);
}

FAKE_EXPORT void fake_hip_capture(int device)
{
    pthread_mutex_lock(&fake_lock);
    if (device >= 0)
        capture.broken = false;
    capture.device = device;
    pthread_mutex_unlock(&fake_lock);
}

FAKE_EXPORT bool fake_hip_captured(void)
{
    pthread_mutex_lock(&fake_lock);
    bool is = !capture.broken;
    pthread_mutex_unlock(&fake_lock);
    return is;
}

FAKE_EXPORT void fake_hip_hold(const char *call)
{
    pthread_mutex_lock(&fake_lock);
    held = call;
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
}

FAKE_EXPORT hipError_t hipGetDeviceCount(int *count)
{
    FAKE_ENTER(-1);
    *count = devices;
    return devices > 0 || no_device_is_no_error ? hipSuccess : hipErrorNoDevice;
}

FAKE_EXPORT hipError_t hipSetDevice(int device)
{
    FAKE_ENTER(-1);
    if (device < 0 || device >= devices)
        return hipErrorInvalidDevice;
    fake_current = device;
    fake_touch(device);
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipGetDevice(int *device)
{
    FAKE_ENTER(-1);
    *device = fake_current;
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipDeviceGetName(char *name, int size, hipDevice_t device)
{
    FAKE_ENTER(device);
    *name = '\0';
    if (!nameless)
        snprintf(name, (size_t)size, "Fake GPU %d", device);
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipGetDeviceProperties(hipDeviceProp_t *properties, int device)
{
    FAKE_ENTER(device);
    memset(properties, 0, sizeof(*properties));
    snprintf(properties->gcnArchName, sizeof(properties->gcnArchName), "gfx90a:sramecc+:xnack-");
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipDeviceGetPCIBusId(char *name, int size, int device)
{
    FAKE_ENTER(device);
    snprintf(name, (size_t)size, "0000:%02x:00.0", device + 1);
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipDeviceGetUuid(hipUUID *uuid, hipDevice_t device)
{
    FAKE_ENTER(device);
    /* ASCII digits, as from AMD's driver; and bytes that are no digits. */
    char text[17];
    snprintf(text, sizeof(text), "%.4s%012x", uuid_begin, (unsigned)device);
    memcpy(uuid->bytes, text, sizeof(uuid->bytes));
    if (device % 2)
        uuid->bytes[0] = '\xfa';
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipDeviceSynchronize(void)
{
    hipError_t error = fake_enter(__func__, fake_current);
    error = error != hipSuccess ? error : fake_capture(fake_current, true);
    /* After an error the caller may close all the same, unless the error is one of capture. */
    if (error < hipErrorStreamCaptureUnsupported || error > hipErrorStreamCaptureWrongThread)
        fake_waited_for = fake_current;
    if (error != hipSuccess)
        return error;
    fake_touch(fake_current);
    fake_drain(fake_current);
    return fake_lost(fake_current);
}

FAKE_EXPORT hipError_t hipThreadExchangeStreamCaptureMode(hipStreamCaptureMode *mode)
{
    FAKE_ENTER(-1);
    const hipStreamCaptureMode before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipGetLastError(void)
{
    hipError_t error = fake_last;
    fake_last = hipSuccess;
    return error;
}

static const struct {
    int code;
    const char *name, *text;
} errors[] = {
    {0, "hipSuccess", "no error"},
    {1, "hipErrorInvalidValue", "invalid argument"},
    {2, "hipErrorOutOfMemory", "out of memory"},
    {100, "hipErrorNoDevice", "no ROCm-capable device is detected"},
    {201, "hipErrorInvalidContext", "invalid context"},
    {400, "hipErrorInvalidHandle", "invalid handle"},
    {700, "hipErrorIllegalAddress", "illegal address"},
    {719, "hipErrorLaunchFailure", "launch failure"},
    {801, "hipErrorNotSupported", "not supported"},
    {900, "hipErrorStreamCaptureUnsupported", "not permitted while capturing"},
};

FAKE_EXPORT const char *hipGetErrorString(hipError_t error)
{
    pthread_once(&once, settings_read);
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
        if (errors[i].code == (int)error)
            return texts_are_names ? errors[i].name : errors[i].text;
    return texts_are_names ? "hipErrorUnknown" : "another error";
}
