/* Prints the first values of a tensor of a model that a daemon keeps in memory. Reads nothing else of the model.
 *
 *     read_tensor MODEL|FILE [TENSOR]
 *
 * MODEL is the name of a model in memory. FILE, which has a slash in it, is loaded, unless it is in memory already.
 * Without TENSOR it is the first tensor. The daemon's socket is $ROCMFORGE_SOCKET, or the default one. Build with
 *
 *     cc read_tensor.c $(pkg-config --cflags --libs rocmforge) -o read_tensor
 */
#include <errno.h>
#include <inttypes.h>
#include <rocmforge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VALUES 8

static void print_values(const rf_model *model, const rf_tensor *tensor)
{
    /* On the host, `tensor->data` can be read directly. rf_model_read() works for a GPU too. */
    float values[VALUES];
    unsigned char bytes[VALUES];

    if (strcmp(tensor->form, "f32") == 0) {
        size_t n = tensor->bytes / sizeof(float) < VALUES ? tensor->bytes / sizeof(float) : VALUES;

        if (rf_model_read(model, tensor->offset, values, n * sizeof(float)) == 0) {
            for (size_t i = 0; i < n; i++)
                printf(" %g", (double)values[i]);
        }
    } else {
        size_t n = tensor->bytes < VALUES ? tensor->bytes : VALUES;

        if (rf_model_read(model, tensor->offset, bytes, n) == 0) {
            for (size_t i = 0; i < n; i++)
                printf(" %02x", bytes[i]);
        }
    }
    printf(" ...\n");
}

static int read_tensor(rf_client *client, const char *model_name, const char *tensor_name)
{
    rf_model *model;
    rf_tensor tensor;

    int attached = strchr(model_name, '/') ? rf_load_attach(client, model_name, NULL, &model)
                                           : rf_attach(client, model_name, &model);
    if (attached < 0) {
        fprintf(stderr, "%s: %s\n", model_name, rf_error_message(client));
        return EXIT_FAILURE;
    }
    int r = tensor_name ? rf_model_find(model, tensor_name, &tensor) : rf_model_tensor(model, 0, &tensor);
    if (r < 0) {
        fprintf(stderr, "%s has no such tensor\n", model_name);
    } else {
        printf("%s is %s in the file, %s in memory, %" PRIu64 " bytes at %p on %s\n", tensor.name, tensor.type,
               tensor.form, tensor.bytes, tensor.data, rf_model_device(model));
        print_values(model, &tensor);
    }
    rf_detach(model);
    return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    rf_client *client;

    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: %s MODEL|FILE [TENSOR]\n", argv[0]);
        return 2;
    }
    if (rf_connect(NULL, &client) < 0) {
        fprintf(stderr, "%s\n", rf_error_message(NULL));
        return EXIT_FAILURE;
    }
    int status = read_tensor(client, argv[1], argc > 2 ? argv[2] : NULL);
    rf_close(client);
    return status;
}
