/* Arrays that grow as they fill. `pointer` is the address of the pointer to the first element, of whatever type. */
#pragma once

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Gives an array room for n elements, at least one. -ENOMEM, and the array is as it was. */
static inline int array_resize(void *pointer, size_t n, size_t element_size)
{
    void *array;
    memcpy(&array, pointer, sizeof(array));
    void *resized = reallocarray(array, n, element_size);
    if (!resized)
        return -ENOMEM;
    memcpy(pointer, &resized, sizeof(resized));
    // cppcheck-suppress memleak ; it is in *pointer
    return 0;
}

/* Gives an array room for `needed` elements: doubles it until it has, from `first` on, but never beyond `most`.
 * -ENOMEM, and the array is as it was: no memory, or `needed` is more than `most`. */
static inline int array_grow(void *pointer, size_t *capacity, size_t needed, size_t element_size, size_t first,
                             size_t most)
{
    if (needed <= *capacity)
        return 0;
    if (needed > most)
        return -ENOMEM;
    size_t grown = *capacity > 0 ? *capacity : first < most ? first : most;
    while (grown < needed)
        grown = grown <= most / 2 ? 2 * grown : most;
    const int r = array_resize(pointer, grown, element_size);
    if (r == 0)
        *capacity = grown;
    return r;
}

/* Makes room for one element behind those that are used: doubles the array if it is full. first: how many there is room
 * for at first. -ENOMEM, and the array is as it was. */
static inline int array_reserve(void *pointer, size_t *capacity, size_t used, size_t element_size, size_t first)
{
    return array_grow(pointer, capacity, used + 1, element_size, first, SIZE_MAX);
}

/* Gives back what an array has no elements in, if it can be. */
static inline void array_trim(void *pointer, size_t *capacity, size_t used, size_t element_size)
{
    if (used > 0 && used < *capacity && array_resize(pointer, used, element_size) == 0)
        *capacity = used;
}
