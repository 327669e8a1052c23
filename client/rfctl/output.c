#include "client/rfctl/output.h"

#include "client/rfctl/format.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/progress.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((format(printf, 3, 0))) static void write_line(FILE *stream, const char *prefix, const char *format,
                                                             va_list arguments)
{
    char *text = NULL;
    if (vasprintf(&text, format, arguments) < 0)
        return;
    char *escaped = text_escape(text, strlen(text));
    fprintf(stream, "%s%s\n", prefix, escaped);
    free(escaped);
    free(text);
}

void out_line(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_line(stdout, "", format, arguments);
    va_end(arguments);
}

void err_line(const char *format, ...)
{
    progress_erase();
    fflush(stdout); /* so that both streams stay in order */
    va_list arguments;
    va_start(arguments, format);
    write_line(stderr, "rfctl: ", format, arguments);
    va_end(arguments);
}

void out_json(const char *text)
{
    /* Outside of strings, JSON has only ASCII characters. Inside strings, every character may be written as an escape.
     */
    for (const char *at = text; *at; at++) {
        unsigned char c = (unsigned char)*at, next = (unsigned char)at[1];
        if (c == '\n' || c == '\r' || c == '\t')
            putchar(' ');
        else if (c == 0x7f)
            fputs("\\u007f", stdout);
        else if (c == 0xc2 && next >= 0x80 && next < 0xa0) {
            printf("\\u%04x", next);
            at++;
        } else
            putchar(c);
    }
    putchar('\n');
}

int out_flush(void)
{
    static int lost;
    if (fflush(stdout) != 0)
        lost = -errno;
    else if (ferror(stdout) && lost == 0)
        lost = -EIO;
    return lost;
}
