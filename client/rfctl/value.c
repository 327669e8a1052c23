/* show --metadata: a value of a model's metadata, whole. */
#include "client/metadata.h"
#include "client/rfctl/format.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/output.h"
#include "client/rfctl/rfctl.h"
#include "client/sealed.h"
#include "daemon/header/model_header.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* As JSON text, which the caller frees. The parser's words for a value are the library's in another struct. */
static char *value_json(const rf_value *value)
{
    struct header_kv kv = {
        .type = (enum gguf_value_type)value->type,
        .element_type = (enum gguf_value_type)value->element_type,
        .count = value->count,
        .data = value->data,
        .data_size = value->bytes,
    };
    char *text;
    if (value->type == RF_STRING) { /* its length stands before it */
        kv.data -= GGUF_STRING_LENGTH;
        kv.data_size += GGUF_STRING_LENGTH;
    }
    if (header_kv_json(&kv, SIZE_MAX, SIZE_MAX, &text, NULL) == 0)
        return text;
    err_line("not enough memory");
    exit(STATUS_REFUSED);
}

/* A text, as it is, for whoever reads standard output; a terminal is steered by nothing but its lines. */
static void print_text(const rf_value *value)
{
    const char *text = value->data, *end = text + value->bytes;
    if (!isatty(STDOUT_FILENO)) {
        fwrite(text, 1, value->bytes, stdout);
        putchar('\n');
        return;
    }
    for (const char *line = text; line <= end;) {
        const char *next = memchr(line, '\n', (size_t)(end - line));
        char *escaped = text_escape(line, (size_t)((next ? next : end) - line));
        puts(escaped);
        free(escaped);
        line = next ? next + 1 : end + 1;
    }
}

/* An element of an array is one line, whatever it holds. */
static void print_element(const rf_value *value)
{
    char *text = value->type == RF_STRING ? text_escape(value->data, value->bytes) : value_json(value);
    puts(text);
    free(text);
}

static void print(const struct rfctl *ctl, const struct metadata *metadata, const rf_value *value)
{
    if (ctl->options.json) {
        char *text = value_json(value);
        out_json(text);
        free(text);
        return;
    }
    if (value->type == RF_STRING)
        print_text(value);
    else if (value->type != RF_ARRAY)
        print_element(value);
    rf_value element;
    uint64_t position = 0;
    while (value->type == RF_ARRAY && metadata_next(metadata, value, &position, &element) > 0)
        print_element(&element);
}

/* Keeps the descriptor of the header. */
static int take_header(void *context, const char *parameters, int continues, int *fds, size_t n_fds)
{
    int *header = context;
    (void)parameters;
    (void)continues;
    if (n_fds != 1)
        return -EPROTO;
    *header = fds[0];
    fds[0] = -1;
    return 0;
}

static int find_and_print(struct rfctl *ctl, int header, const char *key, const char *what)
{
    const void *bytes = NULL;
    uint64_t size = 0;
    struct metadata *metadata = NULL;
    int r = sealed_map_whole(header, &bytes, &size);
    if (r == 0)
        r = metadata_read(bytes, (size_t)size, &metadata);
    const rf_value *value = r == 0 ? metadata_find(metadata, key) : NULL;
    int status = STATUS_DONE;
    if (r < 0)
        status = ctl_refuse(ctl, "cannot %s: the daemon gave a header that cannot be read: %s", what, strerror(-r));
    else if (!value)
        status = ctl_refuse(ctl, "cannot %s: the model has no key '%s'", what, key);
    else
        print(ctl, metadata, value);
    metadata_free(metadata);
    if (bytes)
        munmap((void *)(uintptr_t)bytes, (size_t)size);
    return status;
}

int show_value(struct rfctl *ctl, const char *name, const char *key)
{
    int status = ctl_connect(ctl), header = -1;
    if (status != STATUS_DONE)
        return status;
    char *what = need_text("show %s of %s", key, name);
    cJSON *parameters = ctl_name("name", name);
    cJSON_AddTrueToObject(parameters, "header");
    char *text = cJSON_PrintUnformatted(parameters);
    const int r = rf_call(ctl->client, "Show", text, 0, NULL, 0, take_header, &header);
    status = r < 0 ? ctl_fail(ctl, r, what) : find_and_print(ctl, header, key, what);
    if (header >= 0)
        close(header);
    cJSON_free(text);
    cJSON_Delete(parameters);
    free(what);
    return status;
}
