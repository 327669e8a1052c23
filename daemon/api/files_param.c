/* Files as descriptors: AddFiles, and the parameter "fds" of Load and Plan. */
#include "daemon/api/files_param.h"

#include "daemon/api/methods_list.h"
#include "daemon/model/source.h"
#include "daemon/session/session.h"
#include "daemon/wire/errors.h"
#include "daemon/wire/params.h"

#include <errno.h>

static void close_all(const struct call *call, const int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++)
        conn_close_fd(call->conn, fds[i]);
}

bool files_param_take(struct call *call, const cJSON *indexes, int64_t added, int *fds, size_t *ret_n)
{
    size_t before = session_take_files(call->conn, fds), n = 0;
    if (added == 0) {
        close_all(call, fds, before);
        before = 0;
    }
    if (added < 0 || (uint64_t)added != before) {
        close_all(call, fds, before);
        call_fail_parameter(call, "added");
        return false;
    }
    if (before + (size_t)cJSON_GetArraySize(indexes) > SOURCE_FILES_MAX) {
        close_all(call, fds, before);
        call_fail_parameter(call, "fds");
        return false;
    }
    if (!call_take_fds(call, indexes, fds + before, &n)) {
        close_all(call, fds, before);
        return false;
    }
    *ret_n = before + n;
    return true;
}

void method_add_files(struct api *api, struct call *call)
{
    const cJSON *indexes = NULL;
    static const struct param table[] = {{"fds", PARAM_INTS, true, 0}, {0}};
    int fds[FRAME_FDS_MAX];
    size_t n;
    uint64_t limit = SOURCE_FILES_MAX;
    if (!params_read(call, table, &indexes) || !call_take_fds(call, indexes, fds, &n))
        return;
    int r = session_add_files(call->conn, api->quota, fds, n, SOURCE_FILES_MAX - 1, &limit);
    if (r < 0) {
        call_fail(call, WIRE_LimitExceeded,
                  r == -E2BIG ? error_limit("files", SOURCE_FILES_MAX) : error_quota(r, QUOTA_DESCRIPTORS, limit));
        return;
    }
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddNumberToObject(reply, "files", r);
    call_reply(call, reply, NULL, 0);
}
