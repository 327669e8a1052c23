/* show --metadata: a value of a model's metadata, whole. */
#include "client/rfctl/format.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/output.h"
#include "client/rfctl/rfctl.h"
#include "daemon/gguf/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* As JSON text, which the caller frees. The parser's words for a value are the library's in another struct. */
static char *value_json(const rf_value *value)
{
    struct gguf_kv kv = {
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
    if (gguf_kv_json(&kv, SIZE_MAX, SIZE_MAX, &text, NULL) == 0)
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

static int print(struct rfctl *ctl, const rf_model *model, const rf_value *value, const char *what)
{
    if (ctl->options.json) {
        char *text = value_json(value);
        out_json(text);
        free(text);
        return STATUS_DONE;
    }
    if (value->type == RF_STRING)
        print_text(value);
    else if (value->type != RF_ARRAY)
        print_element(value);
    rf_value element;
    uint64_t position = 0;
    int r = 0;
    while (value->type == RF_ARRAY && (r = rf_model_metadata_next(model, value, &position, &element)) > 0)
        print_element(&element);
    return r < 0 ? ctl_fail(ctl, r, what) : STATUS_DONE;
}

int show_value(struct rfctl *ctl, const char *name, const char *key)
{
    int status = ctl_connect(ctl);
    if (status != STATUS_DONE)
        return status;
    rf_model *model = NULL;
    rf_value value;
    char *what = need_text("show %s of %s", key, name);
    int r = rf_attach(ctl->client, name, &model);
    if (r == 0)
        r = rf_model_metadata_find(model, key, &value);
    status = r < 0 ? ctl_fail(ctl, r, what) : print(ctl, model, &value, what);
    (void)rf_detach(model);
    free(what);
    return status;
}
