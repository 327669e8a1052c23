/* metrics: prints the daemon's metrics in Prometheus' text format, or serves them. */
#include "client/rfctl/http.h"
#include "client/rfctl/output.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_FORMAT "text/plain; version=0.0.4; charset=utf-8"

/* Writes a text as the format wants it: in `escaped` a backslash comes before each of these. Other control characters,
 * which no text of a daemon has, become question marks. */
static void put_text(FILE *out, const char *text, const char *escaped)
{
    for (; *text; text++) {
        if (*text == '\n')
            fputs("\\n", out);
        else if ((unsigned char)*text < 0x20 || *text == 0x7f)
            putc('?', out);
        else if (strchr(escaped, *text))
            fprintf(out, "\\%c", *text);
        else
            putc(*text, out);
    }
}

/* A name of a metric or a label: letters, digits and _. */
static const char *name_of(const cJSON *object, const char *key)
{
    const char *name = reply_text(object, key);
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
    return name[0] && !(name[0] >= '0' && name[0] <= '9') && name[strspn(name, letters)] == '\0' ? name : "invalid";
}

static void put_number(FILE *out, double value)
{
    if (value == floor(value) && fabs(value) < 9007199254740992.0)
        fprintf(out, "%.0f", value);
    else
        fprintf(out, "%.15g", value);
}

static void put_sample(FILE *out, const char *name, const cJSON *sample)
{
    const cJSON *label;
    const char *between = "{";
    const char *suffix = reply_text(sample, "suffix")[0] ? name_of(sample, "suffix") : "";
    fprintf(out, "%s%s", name, suffix);
    cJSON_ArrayForEach (label, reply_items(sample, "labels")) {
        fprintf(out, "%s%s=\"", between, name_of(label, "name"));
        put_text(out, reply_text(label, "value"), "\\\"");
        putc('"', out);
        between = ",";
    }
    fputs(between[0] == ',' ? "} " : " ", out);
    put_number(out, reply_number(sample, "value", (double)NAN));
    putc('\n', out);
}

/* A metric without samples is left out. */
static void put_metric(FILE *out, const cJSON *metric)
{
    const char *name = name_of(metric, "name");
    const cJSON *samples = reply_items(metric, "samples"), *sample;
    if (cJSON_GetArraySize(samples) == 0)
        return;
    fprintf(out, "# HELP %s ", name);
    put_text(out, reply_text(metric, "help"), "\\");
    fprintf(out, "\n# TYPE %s %s\n", name, name_of(metric, "type"));
    cJSON_ArrayForEach (sample, samples)
        put_sample(out, name, sample);
}

/* Asks the daemon. On success *ret is the text, which the caller frees. Returns an exit status. */
static int metrics_text(struct rfctl *ctl, char **ret, size_t *ret_size)
{
    cJSON *reply = NULL;
    int status = ctl_ask(ctl, "Metrics", NULL, "read metrics", &reply);
    if (status != STATUS_DONE)
        return status;
    char *text = NULL;
    FILE *out = open_memstream(&text, ret_size);
    const cJSON *metric;
    if (out) {
        cJSON_ArrayForEach (metric, reply_items(reply, "metrics"))
            put_metric(out, metric);
        if (fclose(out) != 0) {
            free(text);
            text = NULL;
        }
    }
    cJSON_Delete(reply);
    *ret = text;
    return text ? STATUS_DONE : ctl_refuse(ctl, "not enough memory");
}

/* Whatever goes wrong is told to the HTTP client; the exit status is that of the answer. */
static int serve(struct rfctl *ctl)
{
    static const char gone[] = "The daemon does not answer. The journal says why.\n";
    const enum http_method method = http_request("/metrics");
    char *text = NULL;
    size_t size;
    if (method == HTTP_NONE)
        return STATUS_DONE;
    int status = metrics_text(ctl, &text, &size);
    if (status == STATUS_DONE)
        http_answer(method, "200 OK", TEXT_FORMAT, text, size);
    else
        http_answer(method, "503 Service Unavailable", "text/plain; charset=utf-8", gone, sizeof(gone) - 1);
    free(text);
    return status;
}

int command_metrics(struct rfctl *ctl)
{
    char *text = NULL;
    size_t size;
    if (ctl->options.http) {
        ctl->replies = ctl->options.json = false;
        return serve(ctl);
    }
    int status = metrics_text(ctl, &text, &size);
    if (status == STATUS_DONE && !ctl->options.json)
        fwrite(text, 1, size, stdout);
    free(text);
    return status;
}
