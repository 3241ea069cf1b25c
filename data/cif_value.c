#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/cif.h"

bool cif_missing(CifValue value)
{
    return !value.at || (!value.quoted && value.length == 1 && (*value.at == '.' || *value.at == '?'));
}

bool cif_equal(CifValue value, CifValue other)
{
    return value.length == other.length && (value.length == 0 || memcmp(value.at, other.at, value.length) == 0);
}

bool cif_is(CifValue value, const char *text)
{
    return value.at && strlen(text) == value.length && memcmp(value.at, text, value.length) == 0;
}

int cif_compare(CifValue value, CifValue other)
{
    size_t shorter = value.length < other.length ? value.length : other.length;
    int order = shorter ? memcmp(value.at, other.at, shorter) : 0;
    return order ? order : (value.length > other.length) - (value.length < other.length);
}

bool cif_integer(CifValue value, int32_t *number_out)
{
    const char *at = value.at, *end = value.at + value.length;
    if (!at) return false;
    bool negative = at < end && *at == '-';
    if (at < end && (*at == '-' || *at == '+')) at++;
    if (at == end) return false;
    int64_t number = 0;
    for (; at < end; at++) {
        if (!isdigit((unsigned char)*at)) return false;
        number = 10 * number + (*at - '0');
        if (number > INT32_MAX) return false;
    }
    *number_out = (int32_t)(negative ? -number : number);
    return true;
}

/* Anything the quick way below cannot do exactly. */
static bool slow_real(const char *at, const char *end, double *number_out)
{
    char copy[128], *stop;
    size_t length = (size_t)(end - at);
    if (length >= sizeof copy) return false;
    memcpy(copy, at, length);
    copy[length] = '\0';
    for (size_t i = 0; i < length; i++)
        if (!strchr("0123456789+-.eE", copy[i])) return false; /* strtod also takes nan, inf and hexadecimal */
    *number_out = strtod(copy, &stop);
    return stop == copy + length && length > 0 && isfinite(*number_out);
}

/* A decimal number of at most 15 digits is a whole number and a power of ten that double holds exactly, so one division
 * rounds it correctly (Clinger 1990). */
bool cif_real(CifValue value, double *number_out)
{
    static const double power[16] = {1,   1e1, 1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                     1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};
    const char *at = value.at, *end = value.at + value.length;
    if (!at) return false;
    if (value.length > 3 && end[-1] == ')') { /* 1.234(5): standard uncertainty */
        const char *open = memchr(at, '(', value.length);
        if (!open || open + 1 == end - 1) return false;
        for (const char *p = open + 1; p < end - 1; p++)
            if (!isdigit((unsigned char)*p)) return false;
        end = open;
    }
    const char *start = at;
    bool negative = at < end && *at == '-';
    if (at < end && (*at == '-' || *at == '+')) at++;
    int64_t digits = 0, mantissa = 0, after = 0;
    for (; at < end && isdigit((unsigned char)*at); at++, digits++)
        if (digits < 15) mantissa = 10 * mantissa + (*at - '0');
    if (at < end && *at == '.')
        for (at++; at < end && isdigit((unsigned char)*at); at++, digits++, after++)
            if (digits < 15) mantissa = 10 * mantissa + (*at - '0');
    if (digits == 0) return false;
    if (at < end || digits > 15) return slow_real(start, end, number_out);
    double number = (double)mantissa / power[after];
    *number_out = negative ? -number : number;
    return true;
}
