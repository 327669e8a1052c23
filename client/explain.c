#include "client/explain.h"

#include "client/fields.h"
#include "proto/bytes.h"
#include "proto/model_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* How many processes that hold leases are listed. If there are more, only the number of leases is added. */
#define HOLDERS_MAX 8

/* What ModelBusy means if the model has no leases. */
#define NOT_IN_USE "the model is in a state that does not allow this"

struct text {
    char *dst;
    size_t size;
    size_t used;
    const char *between; /* is written before the next part */
};

__attribute__((format(printf, 2, 3))) static void add(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    for (int i = 0; i < 2; i++) {
        size_t left = text->size - text->used;
        int n = i == 0 ? snprintf(text->dst + text->used, left, "%s", text->between)
                       : vsnprintf(text->dst + text->used, left, format, arguments);
        text->used += n < 0 ? 0 : (size_t)n < left ? (size_t)n : left - 1;
    }
    va_end(arguments);
    text->between = ", ";
}

/* "14.2 GB needed". */
static void add_bytes(struct text *text, const cJSON *parameters, const char *key)
{
    uint64_t bytes;
    char size[BYTES_TEXT_SIZE];
    if (field_integer(parameters, key, &bytes))
        add(text, "%s %s", bytes_text(size, (double)bytes, ""), key);
}

/* Adds the text of a field, if there is one. `format` is for that text. */
#define add_text(text, parameters, key, format)                                                                        \
    do {                                                                                                               \
        const char *value_ = field_text(parameters, key);                                                              \
        if (value_)                                                                                                    \
            add(text, format, value_);                                                                                 \
    } while (0)

/* The user that holds the lease, and how long: " (user 1000, for 34 s)". */
static void add_holder(struct text *text, const cJSON *lease)
{
    static const struct {
        const char *name;
        double seconds;
    } units[] = {{"d", 86400}, {"h", 3600}, {"min", 60}, {"s", 1}};
    uint64_t uid;
    const cJSON *age = field(lease, "age");
    if (!field_integer(lease, "uid", &uid) || !cJSON_IsNumber(age) || !(age->valuedouble >= 0))
        return;
    size_t unit = 0;
    while (unit < 3 && age->valuedouble < units[unit].seconds)
        unit++;
    text->between = " ";
    add(text, "(user %" PRIu64 ", for %.0f %s)", uid, floor(age->valuedouble / units[unit].seconds), units[unit].name);
}

static void add_holders(struct text *text, const cJSON *parameters)
{
    const cJSON *leases = field(parameters, "leases"), *lease;
    int n = 0;
    cJSON_ArrayForEach (lease, leases) {
        uint64_t pid;
        if (!field_integer(lease, "pid", &pid))
            continue;
        if (n == HOLDERS_MAX) {
            add(text, "and others, %d leases in all", cJSON_GetArraySize(leases));
            return;
        }
        add(text, n == 0 ? "held by process %" PRIu64 : "%" PRIu64, pid);
        add_holder(text, lease);
        n++;
    }
}

/* True if the daemon lists leases, or does not say how many there are. */
static bool has_holders(const cJSON *parameters)
{
    const cJSON *leases = field(parameters, "leases");
    return !cJSON_IsArray(leases) || cJSON_GetArraySize(leases) > 0;
}

static void add_failed_call(struct text *text, const cJSON *parameters)
{
    uint64_t code;
    add_text(text, parameters, "call", "%s");
    text->between = ": ";
    add_text(text, parameters, "text", "%s");
    if (field_integer(parameters, "code", &code)) {
        text->between = " ";
        add(text, "(%" PRIu64 ")", code);
    }
}

static void add_files(struct text *text, const cJSON *parameters)
{
    const cJSON *files = field(parameters, "files"), *file;
    cJSON_ArrayForEach (file, files) {
        if (cJSON_IsString(file))
            add(text, "%s", file->valuestring);
        text->between = ", ";
    }
}

/* When the file changed, if the daemon says it in words that are known here. */
static void add_when(struct text *text, const cJSON *parameters)
{
    const char *when = field_text(parameters, "when");
    text->between = " ";
    if (when && strcmp(when, "while-read") == 0)
        add(text, "while it was read");
    else if (when && strcmp(when, "since-loaded") == 0)
        add(text, "since the model was loaded");
    text->between = ": ";
}

/* True if the limit is a number of bytes. */
static bool limit_is_bytes(const char *limit)
{
    static const char *const names[] = {"reply", "user-memory", "user-bytes"};
    for (size_t i = 0; limit && i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(limit, names[i]) == 0)
            return true;
    return false;
}

static void add_limit(struct text *text, const cJSON *parameters)
{
    uint64_t value;
    char size[BYTES_TEXT_SIZE];
    add_text(text, parameters, "limit", "%s");
    if (!field_integer(parameters, "value", &value) || value == 0)
        return;
    text->between = ": ";
    if (limit_is_bytes(field_text(parameters, "limit")))
        add(text, "%s", bytes_text(size, (double)value, ""));
    else
        add(text, "%" PRIu64, value);
}

void explain(char *dst, size_t size, enum wire_error error, const cJSON *parameters)
{
    struct text text = {.dst = dst, .size = size, .between = ""};
    uint64_t number;
    add(&text, "%s", error == WIRE_ModelBusy && !has_holders(parameters) ? NOT_IN_USE : wire_error_sentence(error));
    text.between = ": ";
    switch (error) {
    case WIRE_ModelNotFound:
    case WIRE_NameInUse:
        add_text(&text, parameters, "name", "'%s'");
        break;
    case WIRE_ModelBusy:
        add_text(&text, parameters, "name", "'%s'");
        text.between = " is ";
        add_text(&text, parameters, "state", "%s");
        add_holders(&text, parameters);
        break;
    case WIRE_InvalidModel:
        add_text(&text, parameters, "reason", "%s");
        if (field_integer(parameters, "offset", &number))
            add(&text, "at byte %" PRIu64, number);
        break;
    case WIRE_FileChanged:
        add_when(&text, parameters);
        add_text(&text, parameters, "path", "%s");
        break;
    case WIRE_UnsupportedType:
        add_text(&text, parameters, "tensor", "'%s'");
        text.between = " is ";
        add_text(&text, parameters, "type", "%s");
        break;
    case WIRE_InvalidLayout:
        add_text(&text, parameters, "reason", "%s");
        add_text(&text, parameters, "tensor", "'%s'");
        add_text(&text, parameters, "group", "group '%s'");
        break;
    case WIRE_DeviceNotFound:
        add_text(&text, parameters, "device", "'%s'");
        add_text(&text, parameters, "reason", "%s");
        break;
    case WIRE_OutOfDeviceMemory:
        add_bytes(&text, parameters, "needed");
        add_bytes(&text, parameters, "available");
        add_bytes(&text, parameters, "evictable");
        add_text(&text, parameters, "device", "on '%s'");
        break;
    case WIRE_DeviceError:
    case WIRE_FileError:
    case WIRE_StillWritable:
        add_failed_call(&text, parameters);
        break;
    case WIRE_AmbiguousFiles:
        add_files(&text, parameters);
        break;
    case WIRE_LimitExceeded:
        add_limit(&text, parameters);
        break;
    case WIRE_PermissionDenied:
    case WIRE_InvalidMessage:
        add_text(&text, parameters, "reason", "%s");
        break;
    case WIRE_NoFile:
        add_text(&text, parameters, "name", "'%s'");
        break;
    case WIRE_CreationNotFound:
        if (field_integer(parameters, "creation", &number))
            add(&text, "%" PRIu64, number);
        break;
    case WIRE_InvalidManifest:
        if (field_integer(parameters, "tensor", &number))
            add(&text, "tensor %" PRIu64, number);
        add_text(&text, parameters, "reason", "%s");
        break;
    case WIRE_LeaseNotFound:
        if (field_integer(parameters, "lease", &number))
            add(&text, "%" PRIu64, number);
        break;
    case WIRE_InterfaceNotFound:
        add_text(&text, parameters, "interface", "'%s'");
        break;
    case WIRE_MethodNotFound:
    case WIRE_MethodNotImplemented:
        add_text(&text, parameters, "method", "'%s'");
        break;
    case WIRE_InvalidParameter:
        add_text(&text, parameters, "parameter", "'%s'");
        if (field_text(parameters, "parameter") && strcmp(field_text(parameters, "parameter"), "name") == 0)
            add(&text, "which has letters, digits and . _ - : @ +, at most %u, not beginning with -", MODEL_NAME_MAX);
        break;
    default:
        break;
    }
}
