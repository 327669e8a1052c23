/* What cppcheck does not read in the system's headers: macros that look like declarations or like loops. `./setup
 * analyze` includes it first. The program is not compiled with it. */
#define LIST_HEAD(name, type)                                                                                          \
    struct name {                                                                                                      \
        struct type *lh_first;                                                                                         \
    }
#define LIST_ENTRY(type)                                                                                               \
    struct {                                                                                                           \
        struct type *le_next, **le_prev;                                                                               \
    }
#define TAILQ_HEAD(name, type)                                                                                         \
    struct name {                                                                                                      \
        struct type *tqh_first, **tqh_last;                                                                            \
    }
#define TAILQ_ENTRY(type)                                                                                              \
    struct {                                                                                                           \
        struct type *tqe_next, **tqe_prev;                                                                             \
    }
#define STAILQ_HEAD(name, type)                                                                                        \
    struct name {                                                                                                      \
        struct type *stqh_first, **stqh_last;                                                                          \
    }
#define STAILQ_ENTRY(type)                                                                                             \
    struct {                                                                                                           \
        struct type *stqe_next;                                                                                        \
    }
#define LIST_FOREACH(element, head, field)                                                                             \
    for ((element) = (head)->lh_first; (element); (element) = (element)->field.le_next)
#define TAILQ_FOREACH(element, head, field)                                                                            \
    for ((element) = (head)->tqh_first; (element); (element) = (element)->field.tqe_next)
#define STAILQ_FOREACH(element, head, field)                                                                           \
    for ((element) = (head)->stqh_first; (element); (element) = (element)->field.stqe_next)
#define cJSON_ArrayForEach(element, array)                                                                             \
    for ((element) = (array) ? (array)->child : NULL; (element); (element) = (element)->next)
