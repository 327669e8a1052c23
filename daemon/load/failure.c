#include "daemon/load/failure.h"

#include "daemon/base/json_text.h"
#include "daemon/session/describe.h"
#include "daemon/wire/errors.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Files that AmbiguousFiles names. */
#define AMBIGUOUS_MAX 16u

void failure_set(struct failure *failure, enum wire_error error, cJSON *parameters)
{
    if (failure->error != WIRE_OK) {
        cJSON_Delete(parameters);
        return;
    }
    failure->error = error;
    failure->parameters = parameters;
}

cJSON *failure_fault(int error, const struct device_fault *fault)
{
    cJSON *parameters = cJSON_CreateObject();
    cJSON_AddStringToObject(parameters, "call", fault->call);
    cJSON_AddNumberToObject(parameters, "code", fault->code);
    cJSON_AddStringToObject(parameters, "text", fault->text[0] ? fault->text : strerror(-error));
    return parameters;
}

void failure_set_file(struct failure *failure, int error, const struct device_fault *fault, const char *path)
{
    failure_set_changed(failure, error, fault, path, "while-read");
}

void failure_set_changed(struct failure *failure, int error, const struct device_fault *fault, const char *path,
                         const char *when)
{
    if (error != -ESTALE) {
        failure_set(failure, WIRE_FileError, failure_fault(error, fault));
        return;
    }
    cJSON *parameters = cJSON_CreateObject();
    json_add_text(parameters, "path", path);
    cJSON_AddStringToObject(parameters, "when", when);
    failure_set(failure, WIRE_FileChanged, parameters);
}

void failure_set_device(struct failure *failure, int error, const struct device_fault *fault)
{
    failure_set(failure, WIRE_DeviceError, failure_fault(error, fault));
}

static void set_invalid(struct failure *failure, const char *reason, uint64_t offset)
{
    cJSON *parameters = cJSON_CreateObject();
    json_add_text(parameters, "reason", reason);
    cJSON_AddNumberToObject(parameters, "offset", (double)offset);
    failure_set(failure, WIRE_InvalidModel, parameters);
}

/* InvalidModel. If the model is split into several files, the reason says which file is invalid, unless it does so
 * itself, or it is all of them together. */
static void set_invalid_file(struct failure *failure, const struct load_job *job)
{
    const struct header_fault *fault = &job->header_fault;
    char reason[sizeof(fault->reason) + 32];
    const size_t n = job->opened->n_files;
    if (n > 1 && job->file < n && strncmp(fault->reason, "file ", 5) != 0)
        snprintf(reason, sizeof(reason), "file %zu: %s", job->opened->files[job->file].given + 1, fault->reason);
    else
        snprintf(reason, sizeof(reason), "%s", fault->reason);
    set_invalid(failure, reason, fault->offset);
}

/* InvalidLayout. */
static void set_layout(struct failure *failure, const struct layout_fault *fault)
{
    cJSON *parameters = cJSON_CreateObject();
    json_add_text(parameters, "reason", fault->reason);
    json_add_text(parameters, "tensor", fault->tensor);
    json_add_text(parameters, "group", fault->group);
    failure_set(failure, WIRE_InvalidLayout, parameters);
}

/* AmbiguousFiles. Of many files only the first are told. */
static void set_ambiguous(struct failure *failure, const struct load_job *job)
{
    cJSON *parameters = cJSON_CreateObject();
    json_add_text(parameters, "path", job->path);
    cJSON *files = cJSON_AddArrayToObject(parameters, "files");
    for (size_t i = 0; i < job->ambiguous.n && i < AMBIGUOUS_MAX; i++)
        json_append_text(files, job->ambiguous.paths[i]);
    failure_set(failure, WIRE_AmbiguousFiles, parameters);
}

void failure_set_opening(struct failure *failure, const struct load_job *job)
{
    const char *path = job->opened ? job->opened->path : job->path;
    if (job->refused)
        failure_set(failure, WIRE_PermissionDenied,
                    error_reason("not there, or not for everybody to read: pass it as a descriptor"));
    else if (job->status == -ENOMEM)
        failure_set(failure, WIRE_LimitExceeded, error_no_memory());
    else if (job->status == -ENOTUNIQ && job->ambiguous.n > 0)
        set_ambiguous(failure, job);
    else if (!job->opened)
        failure_set_file(failure, job->status, &job->fault, path);
    else if (job->status == -EBADMSG)
        set_invalid_file(failure, job);
    else if (job->status == -ENOTSUP)
        failure_set(failure, WIRE_UnsupportedType, describe_unsupported(&job->header->tensors[job->tensor]));
    else if (job->status == -EDOM)
        set_layout(failure, &job->layout_fault);
    else if (job->status == -E2BIG)
        failure_set(failure, WIRE_LimitExceeded, error_limit("forms", FORMS_RULES_MAX));
    else if (job->status == -EOVERFLOW)
        set_invalid(failure, "the tensors together are larger than any memory", 0);
    else
        failure_set_file(failure, job->status == -ENODATA ? -ESTALE : job->status, &job->fault, path);
}

void failure_clear(struct failure *failure)
{
    cJSON_Delete(failure->parameters);
    *failure = (struct failure){0};
}

cJSON *failure_parameters(const struct failure *failure)
{
    return failure->parameters ? cJSON_Duplicate(failure->parameters, true) : NULL;
}

const char *failure_text(const struct failure *failure, char *text, size_t size)
{
    char *parameters = failure->parameters ? cJSON_PrintUnformatted(failure->parameters) : NULL;
    snprintf(text, size, "%s %s", wire_error_sentence(failure->error), parameters ? parameters : "");
    cJSON_free(parameters);
    return text;
}
