/* The messages that an administrator looks for: their MESSAGE_ID= in the journal. rocmforged(8) lists them, and the
 * fields of each; systemd/rocmforge.catalog explains them. An id never gets another meaning. */
#pragma once

/* a model is resident: MODEL, DEVICE, BYTES, DURATION_USEC, CLIENT_UID */
#define MESSAGE_MODEL_RESIDENT "0cce56305bb4492a846c8025d274ab7a"
/* a load failed or was cancelled: MODEL, DEVICE, DURATION_USEC, CLIENT_UID */
#define MESSAGE_LOAD_FAILED "d75d5ae1446e49eaa170a47c5c61bf0f"
/* a load was refused before it began: CLIENT_UID */
#define MESSAGE_LOAD_REFUSED "273f8e96cc454bde9133ad13b4537528"
/* a model was evicted, so that another one fits: MODEL, DEVICE, BYTES */
#define MESSAGE_MODEL_EVICTED "133e23620e494cbd9c749d3f343acc27"
/* the model that was evicted is kept in host memory: MODEL, DEVICE, BYTES */
#define MESSAGE_MODEL_CACHED "a5cd0f5d783140c4b4c24da0b8dac065"
/* a model's memory is free: MODEL, DEVICE, BYTES */
#define MESSAGE_MODEL_UNLOADED "efedf19c3646424cb11a1236928f347e"
/* a model is unloaded because nobody used it: MODEL, DEVICE */
#define MESSAGE_MODEL_IDLE "63669307da6847ef8ad1b51e7ce7fae2"
/* what is in memory is not what the file has: MODEL, DEVICE */
#define MESSAGE_MODEL_DAMAGED "a36ae1cfd4f94d63b7a2c39cbc79ced2"
/* a process keeps a model from being unloaded: MODEL, DEVICE, CLIENT_UID, CLIENT_PID */
#define MESSAGE_LEASE_HELD "c9847d34cb5e44ffb344ca0740791378"
/* a device failed, and its models are gone: DEVICE */
#define MESSAGE_DEVICE_LOST "3f02d6a6c8374d669feb02f52e11a222"
/* a connection was closed because of what its client did: CLIENT_UID, CLIENT_PID */
#define MESSAGE_CLIENT_ENDED "3378981c5870448e9b96cffbea114473"
/* a device's driver does not answer, and the watchdog is not fed any more */
#define MESSAGE_DRIVER_HANGS "bb1a4b74466647a7b7bdfcada6d5ae02"
/* a model is resident again, as it was before the daemon was started anew: MODEL, DEVICE, BYTES */
#define MESSAGE_MODEL_AGAIN "a18bce2fe7434138b47a6101275d7105"
/* what was kept of a model does not check out, and was given up: MODEL */
#define MESSAGE_MODEL_DROPPED "7b363256da974bbdad7d3258f07822b6"
/* there is no room to keep a model for the next daemon, or not as it is now: MODEL */
#define MESSAGE_MODEL_NOT_KEPT "be54d78268714020948133db2ebac424"
/* the daemon answers clients */
#define MESSAGE_DAEMON_READY "5df96590124a4208bd3625b910fb062d"
/* the daemon ends */
#define MESSAGE_DAEMON_STOPPING "296d219bd54748c0a960d7ddcd1c5f02"
