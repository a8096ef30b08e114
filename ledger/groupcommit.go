package ledger

import (
	"context"
	"time"

	"notifyd/internal/groupcommit"
)

// ask is what one caller wants of a group commit: questions in, answers in the same order out.
type ask[Q, A any] struct {
	ctx       context.Context //nolint:containedctx // the commit borrows its values, and looks whether anybody still waits
	questions []Q
	answers   []A
}

// asks is a group commit of questions.
type asks[Q, A any] struct {
	*groupcommit.Batcher[*ask[Q, A]]
	timeout time.Duration // of one commit, and of one caller: the commit before its own included
}

// newAsks commits at most so many questions together, unless a single caller has more. While several ask at once, each waits
// a linger for the others.
func newAsks[Q, A any](most int, timeout, linger time.Duration, commit func(context.Context, []Q) ([]A, error)) *asks[Q, A] {
	fits := func(batch []*ask[Q, A], next *ask[Q, A]) bool {
		size := len(next.questions)
		for _, a := range batch {
			size += len(a.questions)
		}
		return size <= most
	}
	return &asks[Q, A]{timeout: timeout, Batcher: groupcommit.New(fits, func(batch []*ask[Q, A]) []error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(batch[0].ctx), timeout)
		defer cancel()
		return answer(ctx, batch, commit)
	}).Linger(linger)}
}

// answer commits what a batch asks, but for those who have given up: what piles up during an outage is not worked off
// for nobody.
func answer[Q, A any](ctx context.Context, batch []*ask[Q, A], commit func(context.Context, []Q) ([]A, error)) []error {
	errs := make([]error, len(batch))
	var questions []Q
	for i, a := range batch {
		if errs[i] = a.ctx.Err(); errs[i] == nil {
			questions = append(questions, a.questions...)
		}
	}
	if len(questions) == 0 {
		return errs
	}
	answers, err := commit(ctx, questions)
	for i, a := range batch {
		switch {
		case errs[i] != nil:
		case err != nil:
			errs[i] = err
		default:
			a.answers, answers = answers[:len(a.questions):len(a.questions)], answers[len(a.questions):]
		}
	}
	return errs
}

// submit returns the answers in the questions' order. When ctx or the time ends first, a commit that is under way goes on:
// it may take effect.
func submit[Q, A any](ctx context.Context, to *asks[Q, A], questions []Q) ([]A, error) {
	if len(questions) == 0 {
		return nil, nil
	}
	if until, bounded := ctx.Deadline(); !bounded || time.Until(until) > to.timeout {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, to.timeout)
		defer cancel()
	}
	a := &ask[Q, A]{ctx: ctx, questions: questions}
	if err := to.Do(ctx, a); err != nil {
		return nil, err
	}
	return a.answers, nil
}
