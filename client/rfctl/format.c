#include "client/rfctl/format.h"

#include "client/rfctl/memory.h"
#include "proto/utf8.h"

#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <wchar.h>

#define ELLIPSIS_ROOM 4  /* spare bytes for text_cut() */
#define ESCAPE_LENGTH 10 /* "\u{10ffff}" */

/* --- Numbers --- */

const char *format_bytes(char text[FORMAT_SIZE], double bytes)
{
    return bytes_text(text, bytes, "");
}

const char *format_rate(char text[FORMAT_SIZE], double bytes_per_second)
{
    return bytes_text(text, bytes_per_second, "/s");
}

const char *format_count(char text[FORMAT_SIZE], double count)
{
    static const char *const units[] = {"", "thousand", "million", "billion", "trillion", NULL};
    return scaled_text(text, count, units, "");
}

const char *format_seconds(char text[FORMAT_SIZE], double seconds)
{
    if (!(seconds > 0))
        snprintf(text, FORMAT_SIZE, "0 s");
    else if (seconds < 0.00995)
        snprintf(text, FORMAT_SIZE, "%.2f ms", seconds * 1e3);
    else if (seconds < 0.9995)
        snprintf(text, FORMAT_SIZE, "%.0f ms", seconds * 1e3);
    else if (seconds < 59.995)
        snprintf(text, FORMAT_SIZE, "%.2f s", seconds);
    else {
        double whole = fmin(round(seconds), 1e12);
        if (whole < 3600)
            snprintf(text, FORMAT_SIZE, "%.0f min %.0f s", floor(whole / 60), fmod(whole, 60));
        else
            snprintf(text, FORMAT_SIZE, "%.0f h %.0f min", floor(whole / 3600), floor(fmod(whole, 3600) / 60));
    }
    return text;
}

const char *format_age(char text[FORMAT_SIZE], double seconds)
{
    static const struct {
        double seconds;
        const char *name;
    } units[] = {{86400, "d"}, {3600, "h"}, {60, "m"}, {1, "s"}};
    size_t unit = 0;
    while (unit < 3 && !(seconds >= units[unit].seconds))
        unit++;
    double value = seconds > 0 ? fmin(floor(seconds / units[unit].seconds), 1e9) : 0;
    snprintf(text, FORMAT_SIZE, "%.0f%s", value, units[unit].name);
    return text;
}

/* --- Text --- */

static const char *ellipsis = "...";

void text_begin(void)
{
    bool utf8 = setlocale(LC_CTYPE, "") && strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    ellipsis = utf8 ? "\xe2\x80\xa6" : "...";
    setlocale(LC_CTYPE, "C.UTF-8"); /* for wcwidth(): names and metadata are UTF-8, whatever the user's locale is */
}

/* True for characters that control a terminal, or that change how the text around them is shown. */
static int steers(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) ||         /* C0, DEL, C1 */
           c == 0x61c || c == 0x200e || c == 0x200f ||    /* direction marks */
           (c >= 0x2028 && c <= 0x202e) ||                /* separators, embeddings, overrides */
           (c >= 0x2066 && c <= 0x2069) ||                /* isolates */
           c == 0xfeff || (c >= 0xe0000 && c <= 0xe007f); /* invisible: byte order mark, tags */
}

char *text_escape(const char *text, size_t size)
{
    char *escaped = need_memory(size * ESCAPE_LENGTH + 1 + ELLIPSIS_ROOM);
    char *end = escaped;
    for (size_t i = 0; i < size;) {
        uint32_t c = 0;
        size_t length = utf8_decode(text + i, size - i, &c);
        if (length == 0)
            end += sprintf(end, "\\x%02x", (unsigned char)text[i]);
        else if (c == '\n' || c == '\t' || c == '\r')
            end += sprintf(end, "\\%c", c == '\n' ? 'n' : c == '\t' ? 't' : 'r');
        else if (steers(c))
            end += sprintf(end, c < 0x80 ? "\\x%02x" : "\\u{%x}", c);
        else {
            memcpy(end, text + i, length);
            end += length;
        }
        i += length > 0 ? length : 1;
    }
    *end = '\0';
    return escaped;
}

/* Returns the columns that the first character of `text` takes, and sets *length to its bytes. */
static size_t character_width(const char *text, size_t size, size_t *length)
{
    uint32_t c;
    *length = utf8_decode(text, size, &c);
    if (*length <= 1) {
        *length = 1;
        return 1;
    }
    int width = wcwidth((wchar_t)c);
    return width >= 0 ? (size_t)width : 1;
}

size_t text_width(const char *text)
{
    size_t size = strlen(text), width = 0, length;
    for (size_t i = 0; i < size; i += length)
        width += character_width(text + i, size - i, &length);
    return width;
}

void text_cut(char *text, size_t width)
{
    if (text_width(text) <= width)
        return;
    size_t dots = text_width(ellipsis), size = strlen(text), used = 0, at = 0, length;
    if (dots > width)
        dots = width;
    while (at < size) {
        used += character_width(text + at, size - at, &length);
        if (used + dots > width)
            break;
        at += length;
    }
    /* An ellipsis that is too long for the column is three dots: each is one byte and one column wide. */
    sprintf(text + at, "%.*s", dots < text_width(ellipsis) ? (int)dots : ELLIPSIS_ROOM, ellipsis);
}
