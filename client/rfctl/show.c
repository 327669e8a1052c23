/* show: prints a model with its leases, metadata and tensors. inspect prints the last two tables too. */
#include "client/rfctl/duration.h"
#include "client/rfctl/format.h"
#include "client/rfctl/forms.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/names.h"
#include "client/rfctl/output.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"
#include "client/rfctl/table.h"
#include "client/rfctl/terminal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void show_metadata(const cJSON *metadata)
{
    static const struct table_column columns[] = {{"KEY", 0}, {"TYPE", 0}, {"VALUE", TABLE_CUT}, {0}};
    if (cJSON_GetArraySize(metadata) == 0)
        return;
    struct table *table = table_new(columns);
    const cJSON *entry;
    cJSON_ArrayForEach (entry, metadata) {
        const char *value = reply_text(entry, "value");
        double count = reply_number(entry, "count", -1);
        table_add(table, "%s", reply_text(entry, "key"));
        bool cut = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(entry, "cut"));
        if (count < 0) {
            table_add(table, "%s", reply_text(entry, "type"));
            if (cut)
                table_add(table, "%s... (%.0f bytes)", value, reply_number(entry, "size", 0));
            else
                table_add(table, "%s", value);
            continue;
        }
        table_add(table, "%s[%.0f]", reply_text(entry, "type"), count);
        cJSON *elements = cJSON_Parse(value);
        size_t size = strlen(value);
        if (size > 1 && (double)cJSON_GetArraySize(elements) < count) /* the daemon left out the rest */
            table_add(table, "%.*s,...]", (int)(size - 1), value);
        else
            table_add(table, "%s%s", value, cut ? "... (longer elements)" : "");
        cJSON_Delete(elements);
    }
    out_line("%s", "");
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
}

/* "[4096, 32000]". The caller frees it. */
static char *shape_text(const cJSON *shape)
{
    char *text = NULL;
    size_t size;
    FILE *stream = shape ? open_memstream(&text, &size) : NULL;
    const cJSON *n;
    if (!stream)
        return need_text("?");
    putc('[', stream);
    cJSON_ArrayForEach (n, shape) {
        fprintf(stream, "%s%.0f", n != shape->child ? ", " : "", n->valuedouble);
    }
    putc(']', stream);
    return fclose(stream) == 0 ? text : need_text("?");
}

void show_tensors(const cJSON *tensors)
{
    static const struct table_column columns[] = {
        {"TENSOR", TABLE_CUT}, {"TYPE", 0}, {"FORM", 0}, {"SHAPE", 0}, {"OFFSET", TABLE_RIGHT | TABLE_DROP},
        {"SIZE", TABLE_RIGHT}, {0},
    };
    if (cJSON_GetArraySize(tensors) == 0)
        return;
    struct table *table = table_new(columns);
    const cJSON *tensor;
    cJSON_ArrayForEach (tensor, tensors) {
        char bytes[FORMAT_SIZE];
        char *shape = shape_text(reply_items(tensor, "shape"));
        table_add(table, "%s", reply_text(tensor, "name"));
        table_add(table, "%s", reply_text(tensor, "type"));
        table_add(table, "%s", reply_text(tensor, "form"));
        table_add(table, "%s", shape);
        table_add(table, "%.0f", reply_number(tensor, "offset", 0));
        table_add(table, "%s", format_bytes(bytes, reply_number(tensor, "size", 0)));
        free(shape);
    }
    out_line("%s", "");
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
}

static void tell_changed(const cJSON *model)
{
    const char *name = reply_text(model, "name");
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "deleted")))
        out_line("file changed: before it was deleted, its path had other bytes");
    else if (strchr(name, '#')) /* NAME#ID, which no load can ask for */
        out_line("file changed: its path has another file, or other bytes, now; 'rfctl load FILE' loads them");
    else
        out_line("file changed: its path has another file, or other bytes, now; 'rfctl load FILE --name %s --replace' "
                 "loads them",
                 name);
}

static void show_model(const cJSON *model)
{
    char bytes[FORMAT_SIZE], size[FORMAT_SIZE], age[FORMAT_SIZE], ttl[TTL_SIZE];
    double idle = reply_number(model, "idle", -1), leases = reply_number(model, "leases", 0);
    const char *path = reply_text(model, "path");
    char *form = form_text(model);
    const bool cached = strcmp(reply_text(model, "state"), "cached") == 0;
    out_line("%s (id %.0f): %s, %s on %s as %s, %.0f tensors", reply_text(model, "name"), reply_number(model, "id", 0),
             reply_text(model, "state"), format_bytes(bytes, reply_number(model, "bytes", 0)),
             cached ? "host" : reply_text(model, "device"), form, reply_number(model, "tensors", 0));
    free(form);
    if (cached)
        out_line("comes back to %s when a client attaches", reply_text(model, "device"));
    char *user = user_text(reply_number(model, "uid", 0));
    const bool published = strcmp(reply_text(model, "source"), "published") == 0;
    if (published)
        out_line("published, %s, by %s", format_bytes(size, reply_number(model, "size", 0)), user);
    else
        out_line("from %s, %s, by %s", path[0] ? path : "a file without a name",
                 format_bytes(size, reply_number(model, "size", 0)), user);
    free(user);
    if (idle >= 0)
        out_line("idle for %s", format_age(age, idle));
    else if (leases > 0)
        out_line("%.0f lease%s", leases, leases == 1 ? "" : "s");
    bool pinned = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "pinned"));
    if (pinned)
        out_line("pinned");
    if (reply_number(model, "ttl", -1) >= 0)
        out_line("%sunloaded %s", pinned ? "when unpinned: " : "", ttl_text(ttl, reply_number(model, "ttl", 0)));
    const char *access = reply_text(model, "access");
    out_line("%s", strcmp(access, "private") == 0  ? "private"
                   : strcmp(access, "public") == 0 ? "public"
                   : strcmp(access, "owner") == 0  ? "for that user and the administrators"
                                                   : "for whoever may read the file");
    char *names = names_text(model);
    if (names[0])
        out_line("also called %s", names);
    free(names);
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "deleted")))
        out_line("file deleted: when the model is unloaded, it cannot be loaded from there again");
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "changed")))
        tell_changed(model);
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "heldUp")))
        out_line("the file does not answer: the load waits for it");
    if (reply_number(model, "overflows", 0) > 0)
        out_line("%.0f values were too large for f16 and became infinite", reply_number(model, "overflows", 0));
}

/* The name of the process, from /proc; "" if it cannot be read. Returns `name`. */
static const char *process_name(char name[32], double pid)
{
    name[0] = '\0';
    char *path = need_text("/proc/%.0f/comm", pid);
    FILE *file = fopen(path, "re");
    if (file) {
        if (!fgets(name, 32, file))
            name[0] = '\0';
        name[strcspn(name, "\n")] = '\0';
        fclose(file);
    }
    free(path);
    return name;
}

static void show_leases(const cJSON *leases)
{
    static const struct table_column columns[] = {
        {"LEASE", TABLE_RIGHT}, {"PID", TABLE_RIGHT}, {"PROCESS", 0}, {"USER", TABLE_RIGHT}, {"AGE", TABLE_RIGHT}, {0},
    };
    if (cJSON_GetArraySize(leases) == 0)
        return;
    struct table *table = table_new(columns);
    const cJSON *lease;
    cJSON_ArrayForEach (lease, leases) {
        char age[FORMAT_SIZE], name[32];
        table_add(table, "%.0f", reply_number(lease, "lease", 0));
        table_add(table, "%.0f", reply_number(lease, "pid", 0));
        table_add(table, "%s", process_name(name, reply_number(lease, "pid", 0)));
        table_add(table, "%.0f", reply_number(lease, "uid", 0));
        table_add(table, "%s", format_age(age, reply_number(lease, "age", 0)));
    }
    out_line("%s", "");
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
}

int command_show(struct rfctl *ctl)
{
    cJSON *reply;
    if (ctl->options.metadata)
        return show_value(ctl, ctl->arguments[0], ctl->options.metadata);
    char *what = need_text("show %s", ctl->arguments[0]);
    int status = ctl_ask(ctl, "Show", ctl_name("name", ctl->arguments[0]), what, &reply);
    free(what);
    if (status != STATUS_DONE)
        return status;
    if (!ctl->options.json) {
        show_model(reply_items(reply, "model"));
        show_leases(reply_items(reply, "leases"));
        show_metadata(reply_items(reply, "metadata"));
        double left = reply_number(reply, "metadataLeft", 0);
        if (left > 0)
            out_line("and %.0f more key%s: see --metadata", left, left == 1 ? "" : "s");
        show_tensors(reply_items(reply, "tensors"));
    }
    cJSON_Delete(reply);
    return STATUS_DONE;
}
