package ledger

import (
	"context"
	"time"

	"notifyd/internal/groupcommit"
)

// groupCommitTimeout bounds one commit; callers' own contexts usually end earlier.
const groupCommitTimeout = 10 * time.Second

// ask is what one caller wants of a group commit: questions in, answers in the same order out.
type ask[Q, A any] struct {
	ctx       context.Context //nolint:containedctx // the commit borrows its values, not its end
	questions []Q
	answers   []A
}

type asks[Q, A any] = groupcommit.Batcher[*ask[Q, A]]

// newAsks commits at most so many questions together, unless a single caller has more.
func newAsks[Q, A any](most int, commit func(context.Context, []Q) ([]A, error)) *asks[Q, A] {
	fits := func(batch []*ask[Q, A], next *ask[Q, A]) bool {
		size := len(next.questions)
		for _, a := range batch {
			size += len(a.questions)
		}
		return size <= most
	}
	return groupcommit.New(fits, func(batch []*ask[Q, A]) []error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(batch[0].ctx), groupCommitTimeout)
		defer cancel()
		var questions []Q
		for _, a := range batch {
			questions = append(questions, a.questions...)
		}
		answers, err := commit(ctx, questions)
		if err != nil {
			errs := make([]error, len(batch))
			for i := range errs {
				errs[i] = err
			}
			return errs
		}
		for _, a := range batch {
			a.answers, answers = answers[:len(a.questions):len(a.questions)], answers[len(a.questions):]
		}
		return nil
	})
}

// submit returns the answers in the questions' order. When ctx ends first, the commit still happens.
func submit[Q, A any](ctx context.Context, to *asks[Q, A], questions []Q) ([]A, error) {
	if len(questions) == 0 {
		return nil, nil
	}
	a := &ask[Q, A]{ctx: ctx, questions: questions}
	if err := to.Do(ctx, a); err != nil {
		return nil, err
	}
	return a.answers, nil
}
