# ruff: noqa: E501  # a table reads better in whole lines
"""Why jobs and endpoints fail: a table of known causes.

Its order is its rank: a special cause stands before a general one.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One way to fail, how it shows, and what to do."""

    code: str
    """Short and stable, for scripts."""
    title: str
    pattern: str
    """Regular expression, searched without regard to case in the FailureReason, the statuses and the log lines."""
    fix: str


STOPPED = Cause(
    "stopped",
    "it was stopped on request",
    r"^Stopp(ed|ing)\b",
    "start it again when it is wanted; with training.checkpoints: s3://… the next job goes on from there",
)
"""Of a job whose status is Stopped where no time limit shows; no cause of a failure, so it stands outside the table."""

CAUSES = (
    # --- before the container starts -----------------------------------------------------------------------------
    Cause(
        "quota",
        "the account's quota for this instance type is used up or zero",
        r"ResourceLimitExceeded|account-level service limit",
        "ask for more in Service Quotas (the quota is named like 'ml.g5.xlarge for training job usage'), or take another "
        "instance type",
    ),
    Cause(
        "capacity",
        "AWS has no machine of this type free right now",
        r"CapacityError|InsufficientInstanceCapacity|Unable to provision requested ML compute capacity",
        "name several types in training.instance_type, or set training.max_pending to wait for a machine",
    ),
    Cause(
        "pass-role",
        "the caller may not hand this role to SageMaker",
        r"not authorized to perform: iam:PassRole",
        "allow iam:PassRole on the role for the caller; `python -m launcher iam policy` prints the statement",
    ),
    Cause(
        "assume-role",
        "SageMaker may not take the execution role",
        r"Could not assume role|not authorized to perform: sts:AssumeRole",
        "the role's trust policy must name sagemaker.amazonaws.com; `python -m launcher iam policy` prints it",
    ),
    Cause(
        "image-index",
        "the image is an index of several images, which SageMaker does not run",
        r"unsupported manifest media type|image\.index\.v1\+json|manifest\.list\.v2\+json",
        "build with images.buildkit: false, or `docker build --provenance=false`, and push again",
    ),
    Cause(
        "image-access",
        "the execution role may not pull the image",
        r"not authorized to perform: ecr:|pull access denied|no basic auth credentials|ecr:BatchGetImage",
        "give the role ecr:GetAuthorizationToken, BatchGetImage, GetDownloadUrlForLayer and BatchCheckLayerAvailability; "
        "an image of another account also needs a repository policy there",
    ),
    Cause(
        "image-missing",
        "the image is not in the registry",
        r"CannotPullContainer|manifest unknown|RepositoryNotFoundException|(image|repository) .{0,200}(does not exist|not found)",
        "check repository, tag, account and region of the image; `python -m launcher push` prints a digest to use",
    ),
    Cause(
        "kms",
        "a KMS key does not let the role encrypt or decrypt",
        r"kms:(Decrypt|GenerateDataKey|CreateGrant|Encrypt)|KMS\.?AccessDenied|KMSKeyNotAccessible",
        "allow the execution role in the key's policy, and the key in the role's policy",
    ),
    Cause(
        "data-missing",
        "there are no objects at a channel's place in S3",
        r"No S3 objects found under|NoSuchKey|Data download failed.{0,80}(404|not found)|S3 URI .{0,200}does not exist",
        "list it: `aws s3 ls <uri>`; a prefix that is a folder should end in '/'",
    ),
    Cause(
        "data-access",
        "the execution role may not read or write a place in S3",
        r"AccessDenied.{0,200}(S3|GetObject|ListBucket|PutObject)|(S3|GetObject|ListBucket|PutObject|HeadObject).{0,200}(AccessDenied|Access ?Denied|\(403\)|Forbidden|status[ _]?code\W{1,3}403)",
        "give the role s3:GetObject and s3:ListBucket for inputs, s3:PutObject for outputs; mind bucket policies and the "
        "bucket's region",
    ),
    Cause(
        "subnet",
        "the subnets have no free addresses, or a security group or subnet is wrong",
        r"(InsufficientFreeAddresses|not enough free addresses|InvalidSubnet|InvalidSecurityGroup|NetworkInterfaceLimit)",
        "check network.subnets and network.security_groups; a VPC also needs an S3 endpoint",
    ),
    # --- starting the container ----------------------------------------------------------------------------------
    Cause(
        "no-program",
        "the image has no such executable",
        r"executable file not found in \$?PATH|exit code:? 127|stat .*: no such file or directory: unknown",
        'give the image an ENTRYPOINT as a JSON array with an absolute path, or put an executable "train"/"serve" on PATH',
    ),
    Cause(
        "line-ends",
        "a script has Windows line ends",
        r"\\r'?: (No such file|command not found)|\r: (No such file|command not found)|bad interpreter: .*\^M",
        "save it with Unix line ends: `sed -i 's/\\r$//' FILE`, and `* text=auto eol=lf` in .gitattributes",
    ),
    Cause(
        "architecture",
        "the image was built for another processor",
        r"exec format error|exec user process caused|image'?s platform .* does not match",
        "build with images.….platform: linux/amd64 (Graviton types need linux/arm64)",
    ),
    Cause(
        "not-executable",
        "the entry point lacks the right to be executed",
        r"exec:? .{0,80}permission denied|exit code:? 126",
        "chmod +x in the Dockerfile, or start it through its interpreter",
    ),
    Cause(
        "driver",
        "the host's NVIDIA driver is older than the image's CUDA",
        r"CUDA driver version is insufficient|driver on your system is too old|forward compatibility was attempted"
        r"|unsupported display driver|Error 803|nvidia-container-cli: requirement error",
        "set images.serving.cuda, from which the launcher chooses InferenceAmiVersion; for training use an image with an "
        "older CUDA, or a newer instance family",
    ),
    # --- memory, disk, machine -----------------------------------------------------------------------------------
    Cause(
        "gpu-memory",
        "the GPU's memory is used up",
        r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory",
        "lower the batch size, use mixed precision (amp), or take a GPU with more memory",
    ),
    Cause(
        "shared-memory",
        "/dev/shm is too small for the data loader's workers",
        r"insufficient shared memory|Bus error|unable to (open|write to) (shared memory|file </torch)",
        "lower num_workers, or torch.multiprocessing.set_sharing_strategy('file_system')",
    ),
    Cause(
        "memory",
        "the machine's memory is used up, and the kernel ended a process",
        r"exit code:? ?137|\bMemoryError\b|oom[-_ ]kill|Out of memory: Kill|OutOfMemory|killed by signal: Killed",
        "take a larger instance type, load the data in pieces, or lower num_workers",
    ),
    Cause(
        "disk",
        "the disk is full",
        r"No space left on device|Errno 28|DiskQuotaExceeded|ENOSPC",
        "raise training.volume_size_gb (inputs in File mode, checkpoints and the model share it), or use FastFile",
    ),
    Cause(
        "read-only",
        "something writes where only reading is allowed",
        r"Read-only file system|Errno 30",
        "FastFile channels are read-only, and serverless containers write only to /tmp",
    ),
    Cause(
        "open-files",
        "too many files are open",
        r"Too many open files|Errno 24",
        "lower num_workers, close files, or raise the limit with resource.setrlimit",
    ),
    Cause(
        "hardware",
        "a GPU or machine broke",
        r"Repairing training cluster|uncorrectable ECC|NVRM: Xid|GPU has fallen off the bus|CUDA error: unspecified launch failure",
        "start again; set training.retry_attempts and training.checkpoints so that it goes on by itself",
    ),
    # --- several hosts -------------------------------------------------------------------------------------------
    Cause(
        "collective",
        "the processes lost each other during training",
        r"ncclSystemError|ncclRemoteError|ncclUnhandled|NCCL error|Watchdog caught collective operation timeout"
        r"|(gloo|nccl|pair\.cc).{0,200}Connection (closed|reset) by peer|ProcessGroup\w+.*timed? ?out",
        "look for the first error of any rank: the others only follow; ranks must take the same number of steps; in a VPC "
        "the security group must allow traffic within itself",
    ),
    Cause(
        "rendezvous",
        "the hosts did not find each other",
        r"RendezvousConnectionError|RendezvousTimeoutError|gaierror|Name or service not known|client socket has timed out",
        "in a VPC the security group must allow traffic within itself; all hosts must start the same program",
    ),
    # --- the program ---------------------------------------------------------------------------------------------
    Cause(
        "worker-killed",
        "a data loader's worker died",
        r"DataLoader worker .{0,60}(is killed|exited unexpectedly)",
        "set num_workers to 0 to see its own error; often it is memory",
    ),
    Cause(
        "no-network",
        "the container wanted the network and has none",
        r"Temporary failure in name resolution|Network is unreachable|Failed to establish a new connection"
        r"|Could not connect to the endpoint URL",
        "under network.isolation, or in a subnet without a NAT, put packages and weights into the image or a channel",
    ),
    Cause(
        "requirements",
        "a package could not be installed",
        r"Could not find a version that satisfies|ResolutionImpossible|No matching distribution found|pip install .{0,200}failed",
        "pin versions that exist for the image's Python, or build them into the image",
    ),
    Cause(
        "import",
        "a Python package or library is missing",
        r"(ModuleNotFound|Import)Error:|cannot open shared object file",
        "add it to requirements.txt beside the script, or to the image",
    ),
    Cause(
        "arguments",
        "the script does not take a hyperparameter it was given",
        r"unrecognized arguments|the following arguments are required|error: argument .{0,80}invalid",
        "compare training.hyperparameters with the script's argparse; parse_known_args() lets others pass; an "
        "option with action='store_true' takes no value, and each hyperparameter brings one",
    ),
    Cause(
        "labels",
        "a label is outside the model's classes",
        r"Target -?\d+ is out of bounds|Assertion.{0,60}n_classes|device-side assert|IndexError: Target",
        "count the classes in the data: labels must be 0 .. classes-1",
    ),
    Cause(
        "not-a-number",
        "the loss became NaN or infinite",
        r"loss\W{0,3}(tensor\()?[-+]?(nan|inf)\b|(nan|inf)\w* (loss|gradient)|Loss is (nan|inf)",
        "lower the learning rate, clip gradients, check the inputs' normalisation; with amp float16 use bfloat16",
    ),
    Cause(
        "weights",
        "the weights do not fit the network",
        r"Missing key\(s\) in state_dict|Unexpected key\(s\) in state_dict|size mismatch for ",
        "model_fn must build the very network that was trained; keep its settings beside the weights",
    ),
    Cause(
        "shapes",
        "an array has the wrong shape",
        r"shapes cannot be multiplied|Expected \d+D .{0,40}input|expected input.{0,60}to have \d+ channels|shape mismatch",
        "compare the channel's data with what the network takes: channels, height, width, columns",
    ),
    Cause(
        "permission",
        "a file under /opt/ml may not be read or written",
        r"Permission denied: '?/opt/ml|PermissionError",
        "run the container as root (no USER in the Dockerfile)",
    ),
    Cause(
        "cpu-instructions",
        "the program uses instructions this processor does not have",
        r"exit code:? ?132|Illegal instruction",
        "take a newer instance family, or packages built without AVX-512",
    ),
    Cause(
        "segfault",
        "native code crashed",
        r"exit code:? ?139|Segmentation fault|SIGSEGV",
        "set PYTHONFAULTHANDLER=1 in training.environment to see where; often two packages bring the same library",
    ),
    # --- serving and batch ---------------------------------------------------------------------------------------
    Cause(
        "ping",
        "the container did not answer /ping in time",
        r"did not pass the ping health check|health check (failed|timed out)",
        "read the container's log for its own error; a large model needs endpoint.startup_timeout",
    ),
    Cause(
        "model-download",
        "the model archive could not be downloaded or unpacked",
        r"Failed to download model|Unable to download model|ModelDataDownloadTimeout|Could not find model data"
        r"|not in gzip format|Failed to extract model",
        "check the archive with `tar tzf`; a large one needs endpoint.download_timeout; symlinks are not allowed",
    ),
    Cause(
        "payload",
        "a record or file is larger than MaxPayloadInMB",
        r"Too much data for max payload size|exceeds? (the )?max payload|Payload Too Large|RequestEntityTooLarge|BadRecord",
        "raise transform.max_payload_mb (to 100), split by Line, or cut the file",
    ),
    Cause(
        "bad-request",
        "the container refused a record",
        r"Bad HTTP status (returned|received) from (invoke|algorithm): 4\d\d|Bad HTTP status.{0,40}4\d\d",
        "send one record with `python -m launcher invoke` to read the container's own words; check content_type and split; "
        "SLIPWAY_RECORD_PLACEHOLDERS=true in transform.environment answers a bad record in its place",
    ),
    Cause(
        "handler",
        "the handler failed on a record",
        r"Bad HTTP status.{0,60}5\d\d|\(ModelError\)|ModelError:",
        "send one record with `python -m launcher invoke`; the trace stands in the log under the id of the answer",
    ),
    Cause(
        "slow-answer",
        "the container took longer than it is given to answer",
        r"InvocationsTimeout|Model server did not respond|timed out.{0,40}invocations|in the allotted time",
        "raise transform.timeout, lower transform.max_payload_mb or max_concurrent; real time ends at 60 s: use an "
        "asynchronous endpoint",
    ),
    Cause(
        "alarm",
        "an alarm took the update back: with the new version something was as it must not be",
        r"alarms? went into ALARM state",
        "see what the alarm measures (`python -m launcher logs NAME` has what the new version wrote), mend it and "
        "deploy again; an alarm that is too strict stands in endpoint.rollout.alarms",
    ),
    # --- time ----------------------------------------------------------------------------------------------------
    Cause(
        "time-limit",
        "the job ran into training.max_runtime",
        r"MaxRuntimeExceeded",
        "raise training.max_runtime; with training.checkpoints: s3://… the next job goes on from there",
    ),
    Cause(
        "spot-wait",
        "spot machines did not suffice within training.spot.max_wait",
        r"MaxWaitTimeExceeded",
        "raise spot.max_wait, name more instance types, or run without spot",
    ),
    Cause(
        "internal",
        "SageMaker itself failed",
        r"InternalServerError|encountered an internal error|Internal Server Error",
        "start it again; training.retry_attempts does so by itself",
    ),
    # --- anything else that says where ---------------------------------------------------------------------------
    Cause(
        "exception",
        "the program raised an exception",
        r"^\s*(\[[^\]]*\]:?\s*)*((Algorithm|Client)Error: )?(?!(Algorithm|Client)Error)"
        r"(?![\w.]*(ChildFailedError|SignalException)\b)([A-Za-z_][\w.]*(?-i:Error|Exception|Interrupt|Exit))(:|\s*$)",
        "the lines above say which; the trace stands in the log: `python -m launcher logs NAME`",
    ),
)
