/* The errors of the protocol, in one table for daemon and client: name, errno and a sentence for people.
 *
 * io.rocmforge.varlink describes the parameters of each error. The client library returns the errno as a negative
 * number. Several errors may have the same errno; their names differ. */
#pragma once

/* X(identifier, errno, sentence). On the wire the name is "io.rocmforge.<identifier>". */
#define WIRE_ERRORS(X)                                                                                                 \
    X(ModelNotFound, ENOENT, "no model of this name")                                                                  \
    X(NameInUse, EEXIST, "another model has this name")                                                                \
    X(ModelBusy, EBUSY, "the model is in use")                                                                         \
    X(InvalidModel, EBADMSG, "the file is not a valid model")                                                          \
    X(FileChanged, ESTALE, "the file changed")                                                                         \
    X(UnsupportedType, ENOTSUP, "the tensor's type cannot be decoded; load it as native")                              \
    X(InvalidLayout, EDOM, "the layout does not fit the model")                                                        \
    X(DeviceNotFound, ENODEV, "no such device")                                                                        \
    X(OutOfDeviceMemory, ENOMEM, "not enough device memory")                                                           \
    X(DeviceError, EIO, "a call to the device failed")                                                                 \
    X(FileError, EIO, "reading the file failed")                                                                       \
    X(AmbiguousFiles, ENOTUNIQ, "several files may be the same one of this split model; name all its files")           \
    X(LimitExceeded, EDQUOT, "a limit was reached")                                                                    \
    X(PermissionDenied, EACCES, "not allowed")                                                                         \
    X(Cancelled, ECANCELED, "cancelled")                                                                               \
    X(DeadlineExceeded, ETIMEDOUT, "the deadline has passed")                                                          \
    X(NoFile, ENODATA, "the model was published: there is no file to compare it with")                                 \
    X(CreationNotFound, ENOENT, "no such creation on this connection")                                                 \
    X(InvalidManifest, EBADMSG, "the list of tensors, or the metadata, is not valid")                                  \
    X(StillWritable, EBUSY, "the memory is still mapped for writing")                                                  \
    X(LeaseNotFound, ENOENT, "no such lease on this connection")                                                       \
    X(InvalidMessage, EPROTO, "not a valid message")                                                                   \
    X(ShuttingDown, ESHUTDOWN, "the daemon is going away")

/* The errors that Varlink defines. On the wire the name is "org.varlink.service.<identifier>". */
#define VARLINK_ERRORS(X)                                                                                              \
    X(InterfaceNotFound, EPROTONOSUPPORT, "no such interface")                                                         \
    X(MethodNotFound, EOPNOTSUPP, "no such method")                                                                    \
    X(MethodNotImplemented, EOPNOTSUPP, "the method is not implemented")                                               \
    X(InvalidParameter, EINVAL, "a parameter is missing or wrong")                                                     \
    X(ExpectedMore, EINVAL, "the method is to be called with `more`")

enum wire_error {
    WIRE_OK = 0,
#define X(identifier, errno_, sentence) WIRE_##identifier,
    WIRE_ERRORS(X) VARLINK_ERRORS(X)
#undef X
        WIRE_ERROR_COUNT,
};

/* "io.rocmforge.ModelNotFound". NULL for WIRE_OK and values out of range. A static string. */
const char *wire_error_name(enum wire_error error);

/* The sentence for people. NULL for WIRE_OK and values out of range. A static string. */
const char *wire_error_sentence(enum wire_error error);

/* The negative errno. 0 for WIRE_OK, -EPROTO for values out of range. */
int wire_error_errno(enum wire_error error);

/* The error with this full name; WIRE_ERROR_COUNT: the name is not known. */
enum wire_error wire_error_find(const char *name);
