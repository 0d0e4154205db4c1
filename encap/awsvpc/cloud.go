package awsvpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go/logging"
)

// tuning is how long things take; tests have less time.
type tuning struct {
	attempts   int           // of one request
	backoff    time.Duration // the longest pause between two of them
	request    time.Duration // how long one may take
	dial       time.Duration // how long a connection may take to be accepted
	round      time.Duration // how long a round may take
	min, max   time.Duration // pauses between rounds that failed
	closing    time.Duration // how long Close may take
	undo       time.Duration // how long a failed Start may take back what it did
	delayer    retry.BackoffDelayer
	identifies time.Duration // how long finding out who we are may take
	// proxy is which one is used for requests that may go through one.
	proxy func(*http.Request) (*url.URL, error)
}

func usual() tuning {
	const longest = 10 * time.Second
	return tuning{attempts: 6, backoff: longest, request: 20 * time.Second, dial: 5 * time.Second, round: 2 * time.Minute,
		min: time.Second, max: 5 * time.Minute, closing: 30 * time.Second, undo: 5 * time.Second, identifies: 10 * time.Second,
		delayer: retry.NewExponentialJitterBackoff(longest), proxy: http.ProxyFromEnvironment}
}

// A cloud is EC2 as this instance sees it.
type cloud struct {
	client   *ec2.Client
	instance string // this instance's ID
	region   string
}

// openCloud finds credentials, region and the instance.
func openCloud(ctx context.Context, opts Options, tune tuning, log *slog.Logger) (*cloud, error) {
	cfg, err := loadConfig(ctx, opts, tune, log)
	if err != nil {
		return nil, err
	}
	metaCtx, cancel := context.WithTimeoutCause(ctx, tune.identifies, fmt.Errorf("no answer within %v", tune.identifies))
	defer cancel()
	meta := newMetadata(cfg, tune)
	c := &cloud{}
	if c.instance, err = instanceID(metaCtx, meta); err == nil && cfg.Region == "" {
		var out *imds.GetRegionOutput
		if out, err = meta.GetRegion(metaCtx, nil); err == nil {
			cfg.Region = out.Region
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("awsvpc: instance metadata: %w", context.Cause(ctx))
		}
		const remedy = "aws-vpc works on EC2 instances only: use another backend elsewhere; on EC2, enable the metadata service, let a container use the host's network, unset AWS_EC2_METADATA_DISABLED, or set AWS_EC2_METADATA_SERVICE_ENDPOINT"
		return nil, &callError{text: fmt.Sprintf("awsvpc: instance metadata: %s (%s)", reason(err), remedy), kind: ErrNotEC2, cause: err}
	}
	c.region = cfg.Region
	if err := checkCredentials(ctx, cfg); err != nil {
		return nil, err
	}
	c.client = ec2.NewFromConfig(cfg, func(o *ec2.Options) {
		if cfg.Retryer == nil && o.RetryMode == aws.RetryModeStandard {
			o.Retryer = retry.NewStandard(func(s *retry.StandardOptions) {
				s.MaxAttempts, s.MaxBackoff, s.Backoff = tune.attempts, tune.backoff, tune.delayer
			})
		}
		if r, ok := o.Retryer.(aws.RetryerV2); ok {
			o.Retryer = telling{r}
		}
	})
	return c, nil
}

// loadConfig is the SDK's own configuration, from the caller or as every AWS tool
// finds it.
func loadConfig(ctx context.Context, opts Options, tune tuning, log *slog.Logger) (aws.Config, error) {
	var cfg aws.Config
	through := newProxies(tune)
	client := newClient(tune, through)
	if opts.Config != nil {
		if cfg = opts.Config.Copy(); cfg.HTTPClient == nil {
			cfg.HTTPClient = client
		}
	} else {
		var err error
		cfg, err = config.LoadDefaultConfig(ctx, config.WithHTTPClient(client), config.WithLogger(sdkLogger(log)))
		if err != nil {
			return aws.Config{}, fmt.Errorf("awsvpc: AWS configuration: %w (see the AWS_ variables, and the files they name)", err)
		}
	}
	through.learnFrom(cfg)
	if opts.Region != "" {
		cfg.Region = opts.Region
	}
	return cfg, nil
}

// sdkLogger has the SDK's warnings in our log, instead of on standard error.
func sdkLogger(log *slog.Logger) logging.Logger {
	return logging.LoggerFunc(func(_ logging.Classification, format string, args ...any) {
		log.Debug("AWS SDK", "says", fmt.Sprintf(format, args...))
	})
}

// instanceID asks the metadata service.
func instanceID(ctx context.Context, meta *imds.Client) (string, error) {
	out, err := meta.GetMetadata(ctx, &imds.GetMetadataInput{Path: "instance-id"})
	if err != nil {
		return "", err
	}
	defer out.Content.Close()
	const longest = 64 // an ID is i- and 17 hexadecimal digits
	text, err := io.ReadAll(io.LimitReader(out.Content, longest))
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(text))
	if !strings.HasPrefix(id, "i-") || len(id) == longest {
		return "", fmt.Errorf("%q is no instance ID", id)
	}
	return id, nil
}

// checkCredentials finds out whether there are any, since requests without fail with
// errors that say little.
func checkCredentials(ctx context.Context, cfg aws.Config) error {
	const remedy = "attach an IAM role to the instance, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
	err := errors.New("the configuration has no provider of them")
	if cfg.Credentials != nil {
		_, err = cfg.Credentials.Retrieve(ctx)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("awsvpc: credentials: %w", context.Cause(ctx))
	}
	return &callError{text: fmt.Sprintf("awsvpc: credentials: %s (%s)", reason(err), remedy), kind: ErrCredentials, cause: err}
}
